"""PD204: gradients, or what is made of them, are too large for float16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from precdoctor.evidence import Attempts, Evidence, GradientFlow, GradientLoss, Parameter, Place
from precdoctor.formats import FLOAT16
from precdoctor.rules.finding import Finding, Severity, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import MIN_STEPS, locations, parameter_subjects
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, number, percent, several

_IN_FLOAT32 = {
    False: "form the norm, the sum of squares and the coefficient in float32",
    True: "add gradients up in float32, or divide each by their number before",
}
_SCALING = (
    "loss-scaling",
    "a GradScaler leaves steps out whose gradients are not finite, and lowers its scale",
)
#: share of the steps with a gradient in which it was zero, from which it is said to have been wiped out
ZERO_STEPS = 0.5
#: steps before which it is seen, from which it is more than a scale at its beginning
MIN_STEPS_SEEN = 2
#: attempts at a step left out, from which that is more than a scaler at its best leaves out (torch's: one in
#: 2,000), and their share of all
MIN_LEFT_OUT, LEFT_OUT_SHARE = 2, 0.01
#: passes of which infinite gradients were replaced, from which that is more than a scale at its beginning,
#: and their share of those looked at, without a scaler and with one
MIN_PATCHED, PATCHED_SHARE, PATCHED_SHARE_SCALED = 3, 0.25, 0.5
#: what is left of the losses in the attempt after, from which no scale was lowered: schemes halve it
KEPT = 0.7


class GradientOverflow(Rule):
    """Gradients, or a norm made of them, exceed float16's largest number, 65,504: they become inf.

    ## What it means

    In float16 the square of a gradient above 256 is inf, and so is a sum of squares that would be 65,536. A
    clip by such a norm multiplies all gradients by max_norm / inf = 0. A gradient that overflows in the
    backward pass makes the weights behind it inf or NaN, unless a scaler leaves the step out. So does the sum
    of the gradients of several replicas or micro-batches, each of which may be well within the range.

    ## Why it hurts

    Clipped by an infinite norm the run makes every step with a gradient of exactly zero: momentum and weight
    decay act alone, and nothing reports an error. Without a clip the weights are gone after one step. A
    program that leaves such steps out without lowering a scale trains on fewer batches, the small ones.

    ## Criterion

    While operations are looked at, one on finite float16 gradients gives inf or NaN, outside of the backward
    pass: an error where gradients at the steps were exactly zero in half of the cases or more, or not finite;
    a warning where neither shows.

    Of gradients that are added up or cast, and are gradients again, a warning takes more, since a loss scale
    that falls sets it right: no scaler of torch's is enabled; and either no attempt at a step was left out
    and it was seen before two different steps, or at least 2 attempts and 1 % of all were left out, and the
    losses of the attempts after those (the scale in them) were not smaller than 0.7 of what they were, in the
    median. Attempts are told apart by the number of backward passes that usually come before a step.

    Or an operation of a backward pass gives inf where the same in float32 is finite, no scaler is enabled,
    and gradients at the steps were not finite: an error. Steps that a scaler leaves out, and batches that a
    program skips itself, are no illness.

    Or such gradients are replaced by finite numbers (`nan_to_num`, `where`, `masked_fill`, an index) in at
    least 3 of the backward passes looked at and a quarter of them, half of them where a scaler is enabled: a
    warning.

    ## Blind spots

    Overflow while the operation probe sleeps shows at its results only: gradients that are not finite.
    Gradients of `torch.func` are not known as such.
    What overflows in the forward pass is PD501 or PD503.

    ## Remedies

    Form norms and sums of squares in float32: `g.float().pow(2).sum()`. Add gradients up in float32, or
    divide them by their number before and not after. Scale the loss with a scaler that leaves steps out, and
    clip after it has unscaled.

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
            if loss.adds_or_casts and not loss.backward and _may_be_handled(evidence, flow, loss):
                continue
            if not loss.backward:
                found.append(cls._made_of_gradients(evidence, loss))
            elif not scaled and _not_finite(evidence):
                found.append(cls._backward(evidence, loss))
        if any(loss.kind == "overflow" and loss.backward for loss in flow.losses):
            least = max(MIN_PATCHED, (PATCHED_SHARE_SCALED if scaled else PATCHED_SHARE) * flow.passes)
            patched = [loss for loss in flow.losses if loss.kind == "patched" and loss.passes >= least]
            found += [cls._patched(flow, loss) for loss in patched]
        return found

    @classmethod
    def _patched(cls, flow: GradientFlow, loss: GradientLoss) -> Finding:
        origin = next(each for each in flow.losses if each.kind == "overflow" and each.backward)
        op, first = (each.op.removeprefix("aten::").rstrip("_") for each in (loss, origin))
        text = (
            f"{op}{at(loss.place)} replaces infinite gradients by finite numbers in {loss.passes:,} of "
            f"{flow.passes:,} backward passes, up to {percent(loss.share)} of the elements of a gradient: "
            f"{first} in the backward pass{at(origin.place)} gave inf in float16, where the exact result is "
            f"up to {number(origin.largest)}"
        )
        return _finding(cls, "warning", loss, text, [], [loss.place], [origin.place])

    @classmethod
    def _made_of_gradients(cls, evidence: Evidence, loss: GradientLoss) -> Finding:
        zero, ill = _wiped_out(evidence), _not_finite(evidence)
        severity: Severity = "error" if zero or ill else "warning"
        text = (
            f"{loss.op.removeprefix('aten::')} of float16 gradients{at(loss.place)} is inf, {loss.lost:,} of "
            f"{loss.seen:,} times: the largest {'sum' if 'add' in loss.op else 'gradient'} is "
            f"{number(loss.largest)}, the largest float16 {number(FLOAT16.max)}"
        )
        attempts = evidence.gradient_flow.attempts if evidence.gradient_flow is not None else Attempts()
        if loss.adds_or_casts and attempts.left_out:
            text += f". {attempts.left_out:,} of {count(attempts.made, 'step')} were left out"
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
        prescriptions=ranked([_SCALING] if loss.kind == "patched" else [_wide(loss), _SCALING]),
    )


def _wide(loss: GradientLoss) -> tuple[str, str]:
    return "float32-gradients", _IN_FLOAT32[loss.adds_or_casts]


def _first_of_each(losses: Iterable[GradientLoss]) -> list[GradientLoss]:
    """Return the first operation of each line: the ones after it carry its inf on."""
    found: dict[tuple[bool, str, int], GradientLoss] = {}
    for loss in losses:
        where = (loss.place.file, loss.place.line) if loss.place is not None else ("", 0)
        found.setdefault((loss.backward, *where), loss)
    return list(found.values())


def _may_be_handled(evidence: Evidence, flow: GradientFlow, loss: GradientLoss) -> bool:
    """Tell whether gradients that are too large when they are added up or cast may be nothing but a scale."""
    if any(s.enabled for s in evidence.scalers):
        return True
    if _wiped_out(evidence) or _not_finite(evidence):
        return False
    attempts = flow.attempts
    if not attempts.left_out:
        return loss.steps < MIN_STEPS_SEEN
    often = attempts.left_out >= max(MIN_LEFT_OUT, LEFT_OUT_SHARE * attempts.made)
    return not often or attempts.loss_ratio is None or attempts.loss_ratio < KEPT


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
