"""PD402: the loss scale falls and falls, or steps are left out again and again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from precdoctor.evidence import Evidence, NonFiniteGradient, Place, Scaler
from precdoctor.rules.exactness import exactness
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, loss_scale, several

#: updates at the end that must have been seen, and the share of steps left out that is a standstill
MIN_RECENT, STANDSTILL = 10, 0.5
#: scale below which scaling makes gradients smaller
FLOOR = 1.0
#: fall of the scale since the start, and since the middle of the run, from which it has not come to rest
FALLEN, FALLING = 2.0**10, 2.0**4
#: updates from which that is said
MIN_UPDATES = 20


class CollapsedLossScale(Rule):
    """Steps are left out again and again because gradients are not finite, and the loss scale collapses.

    ## What it means

    A gradient scaler leaves a step out, and halves its scale, when a gradient is inf or NaN. A few such steps
    at the start are how it finds its scale. Here they do not end: something is not finite at any scale (a NaN
    of the forward pass, an overflow that the loss does not cause), or so often that the scale, which doubles
    every 2,000 steps only, cannot recover. A scaler that is made anew for each step never finds its scale.

    ## Why it hurts

    A step that is left out is no step: at a standstill the loss is flat while the program seems to run. With
    a scale below 1, gradients underflow more than without any scaling.

    ## Criterion

    An error where more than half of the last updates (at most 64, at least 10) left a step out. A warning
    where the scale has fallen below 1; or where it is less than 1/1024 of the first one and has fallen by
    another factor of 16 since the middle of the run, and still in its last quarter. A scale that goes up and
    down around its level, or has come down from a large start, is healthy.

    ## Blind spots

    Runs of fewer than 10 updates. Scalers that are not torch's own and do not inherit from it.

    ## Remedies

    Find what overflows: the finding names the parameters whose gradients are not finite, and where the
    operation probe was awake the line at which the gradient of a finite loss became so. Compute that part,
    or the loss, in float32, or take bfloat16, which needs no scaler. Leave out batches with NaN before the
    backward pass, not by the scaler.

    ## References

    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740, section 3.2
    - PyTorch documentation, torch.amp.GradScaler (growth_interval, backoff_factor)
    """

    id: ClassVar[str] = "PD402"
    name: ClassVar[str] = "collapsed-loss-scale"
    example: ClassVar[str] = "collapsed_loss_scale.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per scaler."""
        scalers = _by_line(s for s in evidence.scalers if s.enabled and s.updates)
        makers = exactness(evidence).non_finite_gradients
        return [cls._finding(s, makers) for s in scalers if _why(s)]

    @classmethod
    def _finding(cls, scaler: Scaler, makers: Sequence[NonFiniteGradient]) -> Finding:
        standstill = _stands_still(scaler)
        who = f": {several(scaler.overflowing)}" if scaler.overflowing else ""
        what = "NaN" if scaler.has_nan else "infinite"
        text = f"{_why(scaler)}. {count(scaler.skipped, 'step')} of {scaler.updates:,} were left out"
        if scaler.overflowing:
            text += f"; at the last of them looked at, gradients were {what}{who}"
        if scaler.loss_finite is not None:
            text += ", the loss itself was " + ("finite" if scaler.loss_finite else "not finite either")
        if makers:
            text += f", and what is not finite began in {several([f'{m.node}{at(m.place)}' for m in makers])}"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error" if standstill else "warning",
            subjects=(
                *(Subject(kind="parameter", name=name) for name in scaler.overflowing),
                *([] if scaler.overflowing else [Subject(kind="op", name=scaler.type.rpartition(".")[2])]),
            ),
            message=text + ".",
            locations=locations(
                [*(maker.place for maker in makers), scaler.scaled_at], [scaler.stepped_at, scaler.place]
            ),
            measured={
                "scale": scaler.scale,
                "first_scale": scaler.first_scale,
                "updates": scaler.updates,
                "skipped": scaler.skipped,
                "recent_skipped": scaler.recent_skipped,
                "recent": scaler.recent,
            },
            prescriptions=ranked(
                [
                    (
                        "float32-op",
                        "compute what overflows in float32: the forward pass when the loss is NaN",
                    ),
                    ("bfloat16", "bfloat16 has float32's range and needs no scaler"),
                ]
            ),
        )


def _by_line(scalers: Iterable[Scaler]) -> list[Scaler]:
    """Return scalers, those that one line makes again and again as one."""
    found: dict[Place | None, Scaler] = {}
    single: list[Scaler] = []
    for scaler in scalers:
        if scaler.place is None or scaler.updates >= MIN_RECENT:
            single.append(scaler)
            continue
        known = found.get(scaler.place)
        if known is not None:
            scaler = replace(
                scaler,
                updates=known.updates + scaler.updates,
                skipped=known.skipped + scaler.skipped,
                recent=known.recent + scaler.recent,
                recent_skipped=known.recent_skipped + scaler.recent_skipped,
                overflowing=scaler.overflowing or known.overflowing,
            )
        found[scaler.place] = scaler
    return [*single, *found.values()]


def _why(scaler: Scaler) -> str:
    """Return what is wrong with a scale; empty where nothing is."""
    scales = f"from {loss_scale(scaler.first_scale)} to {loss_scale(scaler.scale)}"
    if _stands_still(scaler):
        part = f"{scaler.recent_skipped} of the last {scaler.recent} steps"
        return f"The gradient scaler left out {part}: training stands still, and its scale fell {scales}"
    if scaler.scale < FLOOR and scaler.skipped and scaler.scale < scaler.first_scale:
        return f"The loss scale fell {scales}: below 1 it makes gradients smaller"
    if scaler.scale <= scaler.first_scale / FALLEN and _goes_on_falling(scaler):
        return f"The loss scale fell {scales}, and goes on falling"
    return ""


def _stands_still(scaler: Scaler) -> bool:
    return scaler.recent >= MIN_RECENT and scaler.recent_skipped > STANDSTILL * scaler.recent


def _goes_on_falling(scaler: Scaler) -> bool:
    """Tell whether the scale fell in the second half of the run, and in its last quarter still."""
    falls = scaler.scale <= _after(scaler, 0.5) / FALLING and scaler.scale < _after(scaler, 0.75)
    return scaler.updates >= MIN_UPDATES and falls


def _after(scaler: Scaler, share: float) -> float:
    """Return the scale after a share of the updates."""
    before = [scale for update, scale in scaler.trace if update <= share * scaler.updates]
    return before[-1] if before else scaler.first_scale
