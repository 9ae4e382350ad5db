"""PD204: gradients, or what is made of them, are too large for float16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from precdoctor.evidence import Evidence, GradientLoss, Parameter, Place
from precdoctor.formats import FLOAT16
from precdoctor.rules.finding import Finding, Severity, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import MIN_STEPS, locations, parameter_subjects
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, number, several

#: share of the steps with a gradient in which it was zero, from which it is said to have been wiped out
ZERO_STEPS = 0.5


class GradientOverflow(Rule):
    """Gradients, or a norm made of them, exceed float16's largest number, 65,504: they become inf.

    ## What it means

    In float16 the square of a gradient above 256 is inf, and so is a sum of squares that would be 65,536. A
    clip by such a norm multiplies all gradients by max_norm / inf = 0. A gradient that overflows in the
    backward pass makes the weights behind it inf or NaN, unless a scaler leaves the step out.

    ## Why it hurts

    Clipped by an infinite norm the run makes every step with a gradient of exactly zero: momentum and weight
    decay act alone, and nothing reports an error. Without a clip the weights are gone after one step.

    ## Criterion

    While operations are looked at, one on finite float16 gradients gives inf or NaN, outside of the backward
    pass: an error where gradients at the steps were exactly zero in half of the cases or more, or not finite;
    a warning where neither shows. Or an operation of a backward pass gives inf where the same in float32 is
    finite, no scaler is enabled, and gradients at the steps were not finite: an error. Steps that a scaler
    leaves out, and batches that a program skips itself, are no illness.

    ## Blind spots

    Overflow while the operation probe sleeps shows at its results only: gradients that are not finite.
    What overflows in the forward pass is PD501 or PD503.

    ## Remedies

    Form norms and sums of squares in float32: `g.float().pow(2).sum()`. Scale the loss with a scaler that
    leaves steps out, and clip after it has unscaled.

    ## References

    - facebookresearch/fairscale issue 263; tracel-ai/burn issue 5699
    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740
    """

    id: ClassVar[str] = "PD204"
    name: ClassVar[str] = "gradient-overflow"
    example: ClassVar[str] = "gradient_overflow.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per line at which gradients become infinite."""
        flow = evidence.gradient_flow
        if flow is None:
            return []
        found = []
        scaled = any(s.enabled for s in evidence.scalers)
        for loss in _first_of_each(loss for loss in flow.losses if loss.kind == "overflow"):
            if not loss.backward:
                found.append(cls._made_of_gradients(evidence, loss))
            elif not scaled and _not_finite(evidence):
                found.append(cls._backward(evidence, loss))
        return found

    @classmethod
    def _made_of_gradients(cls, evidence: Evidence, loss: GradientLoss) -> Finding:
        zero, ill = _wiped_out(evidence), _not_finite(evidence)
        severity: Severity = "error" if zero or ill else "warning"
        text = (
            f"{loss.op.removeprefix('aten::')} of float16 gradients{at(loss.place)} is inf, {loss.lost:,} of "
            f"{loss.seen:,} times: the largest gradient is {number(loss.largest)}, the largest float16 "
            f"{number(FLOAT16.max)}"
        )
        if zero:
            names = several([p.name for p in zero])
            text += f". What is divided by it is 0: {names} got gradients of exactly zero"
        elif ill:
            text += f". {several([p.name for p in ill])} got gradients that are not finite"
        return _finding(cls, severity, loss, text, zero or ill, [loss.place], [])

    @classmethod
    def _backward(cls, evidence: Evidence, loss: GradientLoss) -> Finding:
        ill = _not_finite(evidence)
        text = (
            f"{loss.op.removeprefix('aten::')} in the backward pass{at(loss.place)} gave inf in "
            "float16 where the "
            f"exact result is up to {number(loss.largest)}; no scaler leaves the step out, and "
            f"{several([p.name for p in ill])} got gradients that are not finite"
        )
        causes = [f.place for f in evidence.forwards if f.autocast == FLOAT16.name]
        casts = [p.cast.place for p in ill if p.format == FLOAT16.name and p.cast is not None]
        return _finding(cls, "error", loss, text, ill, [*causes, *casts], [loss.place])


def _finding(
    rule: type[GradientOverflow],
    severity: Severity,
    loss: GradientLoss,
    text: str,
    parameters: list[Parameter],
    causes: list[Place | None],
    sites: list[Place | None],
) -> Finding:
    named = loss.function and not loss.function.startswith("<")  # a comprehension is no function to name
    function = (Subject(kind="op", name=loss.function),) if named else ()
    subjects = (*parameter_subjects(parameters), *function)
    return Finding(
        rule=rule.id,
        name=rule.name,
        severity=severity,
        subjects=subjects or (Subject(kind="op", name=loss.op.removeprefix("aten::")),),
        message=text + ".",
        locations=locations(causes, sites),
        measured={
            "operation": loss.op,
            "seen": loss.seen,
            "overflowed": loss.lost,
            "largest": loss.largest,
            "largest_float16": FLOAT16.max,
        },
        prescriptions=ranked(
            [
                ("float32-gradients", "form the norm, the sum of squares and the coefficient in float32"),
                (
                    "loss-scaling",
                    "a GradScaler leaves steps out whose gradients are not finite, and lowers its scale",
                ),
            ]
        ),
    )


def _first_of_each(losses: Iterable[GradientLoss]) -> list[GradientLoss]:
    """Return the first operation of each line: the ones after it carry its inf on."""
    found: dict[tuple[bool, str, int], GradientLoss] = {}
    for loss in losses:
        where = (loss.place.file, loss.place.line) if loss.place is not None else ("", 0)
        found.setdefault((loss.backward, *where), loss)
    return list(found.values())


def _wiped_out(evidence: Evidence) -> list[Parameter]:
    """Return the parameters whose gradient was exactly zero at half of the steps or more."""
    return [
        p
        for p in evidence.parameters
        if p.gradient.present >= MIN_STEPS and p.gradient.all_zero >= ZERO_STEPS * p.gradient.present
    ]


def _not_finite(evidence: Evidence) -> list[Parameter]:
    return [
        p for p in evidence.parameters if p.gradient.binades is not None and p.gradient.binades.non_finite
    ]
