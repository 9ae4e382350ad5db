"""PD203: gradients are too small for float16, or for 8 bits, and flush to zero on their way."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Evidence, GradientFlow, GradientLoss, Parameter, Place, Scaler
from precdoctor.formats import FLOAT16
from precdoctor.rules.finding import Finding, Prescription, Severity, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import MIN_STEPS, format_named, locations, parameter_subjects
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, number, percent, several

#: share of the backward passes looked at in which something must be lost: a run that has converged ends there
MIN_PASSES_SHARE = 0.5
#: share of the operations on gradients that lose half of their result, from which it is an error in any case
ERROR_SHARE = 0.25
#: share of the steps with a gradient in which it was zero, from which a parameter counts as cut off
ZERO_STEPS = 0.5


#: share of the gradients that a program scales itself of which half is lost, from which it is reported
BY_HAND = 0.25


class GradientUnderflow(Rule):
    """Gradients are below what float16 can hold: they flush to zero between the loss and the weights.

    ## What it means

    The smallest positive float16 is 6e-8, and below 6e-5 digits are missing. The gradient of a mean over a
    million elements, of a loss with a small weight or of a deep net is there. Under autocast the backward
    pass runs in the formats of the forward pass, so gradients of activations are float16 even where the
    weights are float32. And the derivative of a cast is a cast: where activations are sent through a float of
    8 bits and back, so is their gradient, without the scale that was chosen for the activations. The smallest
    positive e4m3fn is 2^-9.

    ## Why it hurts

    Early layers get no gradient at all, or one of a few large elements, and the run trains the last layers
    only. Nothing is NaN and the loss falls a little.

    ## Criterion

    Operations of backward passes with float16 results are done again in float32, from the same operands. One
    that has less than half of the exact result left (by projection), all of which lies below float16's normal
    range, counts as lost; sums whose terms cancel do not. An error where that happens in at least half of the
    backward passes that were looked at, and parameters got exactly zero at half of their steps or more, or a
    quarter of the operations are lost; else a warning. Gradients are judged as they are scaled: with a
    working scaler they are in range. Units that are off, unused rows and terms of weight 0 are exact zeros in
    float32 as well, and no underflow. Of formats of 8 bits only casts are looked at, by the same criterion.

    What a program does to float16 gradients itself counts at each of its lines, in optimizers of its own too:
    scaling them in place, casting them, or squaring them for a norm. An error where less than half of the
    result is left (of a square, less than half of its sum) in a quarter of the times.

    ## Blind spots

    Backward passes while the operation probe sleeps. Operations that are not linear in gradients, and very
    large ones, are not done again. Products in 8 bits are not looked at.

    ## Remedies

    Scale the loss: `torch.amp.GradScaler`, enabled, with its default scale of 65,536. Or bfloat16, which has
    float32's range. Values that are only to look like 8 bits: a straight-through estimator,
    `x + (Q(x) - x).detach()`.

    ## References

    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740, section 3.2
    - PyTorch documentation, Automatic Mixed Precision, gradient scaling
    """

    id: ClassVar[str] = "PD203"
    name: ClassVar[str] = "gradient-underflow"
    example: ClassVar[str] = "gradient_underflow.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding for the backward passes, and one per line that scales gradients away itself."""
        flow = evidence.gradient_flow
        if flow is None:
            return []
        losses = [loss for loss in flow.losses if loss.kind == "underflow"]
        found = [
            cls._by_hand(loss) for loss in losses if not loss.backward and loss.lost >= BY_HAND * loss.seen
        ]
        inside = [loss for loss in losses if loss.backward]
        severity = _severity(evidence, flow, inside) if inside else None
        if severity is not None:
            found.append(cls._finding(evidence, flow, inside, severity))
        return found

    @classmethod
    def _finding(
        cls, evidence: Evidence, flow: GradientFlow, losses: list[GradientLoss], severity: Severity
    ) -> Finding:
        worst = max(losses, key=lambda loss: (loss.share, loss.lost))
        lost = sum(loss.lost for loss in losses)
        fmt = format_named(worst.format) or FLOAT16
        cut = _cut_off(evidence)
        scaler = _scaler(evidence)
        text = (
            f"{lost:,} of {count(flow.operations, 'operation')} on {fmt.name} gradients{at(worst.place)} "
            "gave less than "
            f"half of what they give in float32: in {worst.op.removeprefix('aten::')} the largest "
            "exact element is "
            f"{number(worst.largest)}, the smallest positive {fmt.name} is {number(fmt.min_subnormal)}, and "
            f"{percent(worst.share)} of the elements became 0"
        )
        if worst.cast is not None:
            text += f": the backward of the cast{at(worst.cast)} casts them without a scale"
        if cut:
            text += f". {several([p.name for p in cut])} got a gradient of exactly zero"
        if scaler is None and worst.cast is None:
            text += "; the loss is not scaled"
        elif scaler is not None:
            state = f"has a scale of {number(scaler.scale)}" if scaler.enabled else "is disabled"
            text += f"; the scaler{at(scaler.place)} {state}"
        subjects = parameter_subjects(cut) or (Subject(kind="op", name=worst.function or "backward"),)
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=subjects,
            message=text + ".",
            locations=locations(
                [worst.cast] if worst.cast is not None else _causes(evidence, scaler),
                [loss.place for loss in losses],
            ),
            measured={
                "operations": flow.operations,
                "lost_operations": lost,
                "passes": flow.passes,
                "passes_with_loss": max(loss.passes for loss in losses),
                "largest_exact": worst.largest,
                "flushed_share": worst.share,
                "projection": worst.projection,
                "format": fmt.name,
                "min_subnormal": fmt.min_subnormal,
                "min_normal": fmt.min_normal,
                "scale": scaler.scale if scaler is not None and scaler.enabled else 1.0,
            },
            prescriptions=_straight_through()
            if worst.cast is not None
            else ranked(
                [
                    (
                        "loss-scaling",
                        "a GradScaler with its usual 65,536 lifts gradients by 16 binades: the largest exact "
                        f"element above becomes {number(worst.largest * 65536)}",
                    ),
                    (
                        "bfloat16-autocast",
                        "bfloat16 has float32's range: nothing underflows, and nothing is to be scaled",
                    ),
                ]
            ),
        )

    @classmethod
    def _by_hand(cls, loss: GradientLoss) -> Finding:
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=(Subject(kind="op", name=loss.function or loss.op.removeprefix("aten::")),),
            message=(
                f"gradients are {_done(loss.op)}{at(loss.place)} in float16 and flush to zero: the largest "
                "exact element is "
                f"{number(loss.largest)}, the smallest positive float16 is "
                f"{number(FLOAT16.min_subnormal)}, and "
                f"{percent(loss.share)} of the elements became 0."
            ),
            locations=locations([loss.place]),
            measured={
                "largest_exact": loss.largest,
                "flushed_share": loss.share,
                "projection": loss.projection,
                "min_subnormal": FLOAT16.min_subnormal,
            },
            prescriptions=ranked(
                [("float32-gradients", f"keep the gradients in float32 where they are {_done(loss.op)}")]
            ),
        )


def _done(op: str) -> str:
    """Return what an operation does to gradients."""
    if op == "aten::_to_copy":
        return "cast"
    return "squared" if op in ("aten::pow", "aten::mul") else "scaled"


def _straight_through() -> tuple[Prescription, ...]:
    return ranked(
        [("ste", "x + (Q(x) - x).detach(): the same values forward, and the gradient comes back uncast")]
    )


def _severity(evidence: Evidence, flow: GradientFlow, losses: list[GradientLoss]) -> Severity | None:
    if max(loss.passes for loss in losses) < max(MIN_PASSES_SHARE * flow.passes, 1):
        return None
    share = sum(loss.lost for loss in losses) / max(flow.operations, 1)
    return "error" if share >= ERROR_SHARE or _cut_off(evidence) else "warning"


def _cut_off(evidence: Evidence) -> list[Parameter]:
    """Return the parameters whose gradient was exactly zero at half of the steps or more."""
    return [
        p
        for p in evidence.parameters
        if p.gradient.present >= MIN_STEPS and p.gradient.all_zero >= ZERO_STEPS * p.gradient.present
    ]


def _scaler(evidence: Evidence) -> Scaler | None:
    return next((s for s in evidence.scalers if s.enabled), next(iter(evidence.scalers), None))


def _causes(evidence: Evidence, scaler: Scaler | None) -> list[Place | None]:
    """Return the scaler that does nothing, else the float16 regions, else the casts of the parameters."""
    if scaler is not None and scaler.place is not None:
        return [scaler.place]
    regions = [f.place for f in evidence.forwards if f.autocast == FLOAT16.name]
    casts = [p.cast.place for p in evidence.parameters if p.format == FLOAT16.name and p.cast is not None]
    return [*regions, *casts]
