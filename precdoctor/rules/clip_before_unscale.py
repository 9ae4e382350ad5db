"""PD403: gradients are clipped while they are still multiplied by the loss scale."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import EarlyClip, Evidence
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import functions, locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, loss_scale, number

#: threshold over scale from which the threshold was multiplied by the scale on purpose
MEANT = 1 / 16
#: the same for a threshold that is a share of the weights' norm: at most 0.16 (Brock et al. 2021)
MEANT_OF_WEIGHTS = 1 / 4
#: threshold that follows a changing scale (relative)
FOLLOWS = 0.01


class ClipBeforeUnscale(Rule):
    """Gradients are clipped while they are still multiplied by the loss scale, and divided by it afterwards.

    ## What it means

    The backward pass of a scaled loss leaves gradients that are, say, 65,536 times too large. Clipped to a
    norm of 1 as they are, and then divided by the scaler, they reach the optimizer with a norm of at most
    1/65,536, whatever they were.

    ## Why it hurts

    Every step is clipped, to next to nothing: SGD hardly moves, and with Adam, which divides by the size of
    the gradient, all steps weigh the same, clipping included. The norm that the program logs is that of the
    scaled gradients. Measured in one such run: norms of 1.5e-5 at the optimizer where up to 1.0 was meant.

    ## Criterion

    An error where gradients of a scaled loss were clipped (`clip_grad_norm_`, `clip_grad_value_`, or
    `clamp` in a hook or the `backward` of a custom function) before the scaler divided them, the scale was
    not 1, and the clipping had an effect. A threshold that was multiplied by the scale (it follows the
    scale, or is at least 1/16 of it) is meant so and no finding.

    Clipping by the user's own code is known by what it leaves: at 4 steps or more it made the scaled
    gradients, or half of the parameters or of their rows, smaller by 1 % or more, to the same norm or largest
    magnitude (to 0.1 %, where they were different by 1 % or more), or to the same share of the norm of their
    weights (adaptive clipping), below 1/4: a larger one was multiplied by the scale. A constant factor leaves
    the differences that there were.

    ## Blind spots

    Own clipping that has an effect in fewer than 4 of the first 12 steps, that whose gradients all are as
    large at each step, and that of a program which reads the scale between the scaled loss and the division.
    Scalers that are not torch's own.

    ## Remedies

    Call `scaler.unscale_(optimizer)` before clipping; `scaler.step` then does not divide again.

    ## References

    - PyTorch documentation, Automatic Mixed Precision examples: gradient clipping
    - Lightning-AI/pytorch-lightning#9599, pytorch/examples#1196
    - Brock et al. 2021, High-Performance Large-Scale Image Recognition Without Normalization, arXiv
      2102.06171 (adaptive gradient clipping)
    """

    id: ClassVar[str] = "PD403"
    name: ClassVar[str] = "clip-before-unscale"
    example: ClassVar[str] = "clip_before_unscale.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per line that clips too early."""
        return [
            cls._finding(clip)
            for scaler in evidence.scalers
            if scaler.enabled
            for clip in scaler.early_clips
            if clip.samples and _had_effect(clip) and not _is_meant(clip)
        ]

    @classmethod
    def _finding(cls, clip: EarlyClip) -> Finding:
        scale, threshold, before = clip.samples[-1]
        what = {"norm": "their norm was", "own": "it was"}.get(clip.kind, "their values were")
        text = (
            f"Gradients are clipped{at(clip.place)} while they are still multiplied by the loss scale "
            f"({loss_scale(scale)}): a threshold of {number(threshold)} leaves {number(threshold / scale)} "
            "once they are divided"
        )
        if clip.of_weights is not None:
            text += f" ({number(clip.of_weights)} of the norm of the weights)"
        if before is not None:
            text += f"; before clipping {what} {number(before)}, that is {number(before / scale)}"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=(Subject(kind="op", name=_function(clip)),),
            message=f"{text}. Seen at {count(clip.seen, 'step')}.",
            locations=locations([clip.place], [clip.stepped_at]),
            measured={
                "scale": scale,
                "threshold": threshold,
                "threshold_unscaled": threshold / scale,
                "before_clipping": before,
                "of_weights": clip.of_weights,
                "seen": clip.seen,
            },
            prescriptions=ranked(
                [("unscale-first", "scaler.unscale_(optimizer) before clipping divides them in time")]
            ),
        )


def _function(clip: EarlyClip) -> str:
    name = {"value": "clip_grad_value_", "clamp": "clamp"}.get(clip.kind, "clip_grad_norm_")
    return next(iter(functions([clip.place])), name)


def _had_effect(clip: EarlyClip) -> bool:
    """Tell whether gradients were larger than the threshold, at any time seen."""
    return any(
        before is None or not before <= threshold  # NaN: what it does is no matter of the order
        for _, threshold, before in clip.samples
    )


def _is_meant(clip: EarlyClip) -> bool:
    """Tell whether the threshold was multiplied by the scale on purpose."""
    if clip.of_weights is not None:
        return clip.of_weights >= MEANT_OF_WEIGHTS
    ratios = [threshold / scale for scale, threshold, _ in clip.samples]
    scales = [scale for scale, _, _ in clip.samples]
    if max(scales) > 1.5 * min(scales):
        return max(ratios) - min(ratios) <= FOLLOWS * max(ratios)
    return min(ratios) >= MEANT
