"""PD601: a quantizer lets no gradient through to its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Evidence, Parameter
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.quantized import (
    Quantized,
    by_quantizer,
    elements,
    quantized,
    quantizer_locations,
    severed_as,
    who,
)
from precdoctor.rules.reading import optimizer_of
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, number, percent, several


class SeveredQuantizer(Rule):
    """A weight is quantized in the forward pass without a straight-through estimator: it gets no gradient.

    ## What it means

    The forward pass computes with Q(w), and backward does not come back to w: it was taken without its
    history (`w.data`, `.detach()`, under `no_grad`), or the way leads through `round`, whose derivative is
    zero everywhere, or only the scale is differentiated and one weight per block, the largest, is trained.
    Or the weight is kept as a quantized buffer and there is nothing left to train.

    ## Why it hurts

    `requires_grad` is True, the weights are in the optimizer, and it skips them: they stay as they were
    drawn. What lies before them still learns, through frozen random layers, so the loss falls. In the
    four-bit language model of the sample programs 29.5 of 48.4 million weights were frozen like this; its
    report blamed four bits. Without any quantization, and the gradient cut in the same way, it failed alike
    (loss 4.32 and 4.33); with a straight-through estimator the same four bits reached 0.35, where float32
    reached 0.32.

    ## Criterion

    An error where the used values are rounded from one trainable parameter of an optimizer and, at all of at
    least 3 observed steps, its gradient was None (cut, or a custom function returns none while others of the
    optimizer get theirs), or exactly zero and the graph leads there through nodes of zero derivative or
    custom functions only. And where gradient arrives by the scale alone: its cosine with that of the used
    values is below 0.3, and fewer than a tenth of the elements get it that the used values get (0.064 and
    0.0129 were measured; straight-through: 0.98 and 1.0), or the graph leads there through tensors of less
    than half the weight's size only; or, where the scale follows after the product and the codes are cut
    off, fewer than a tenth of the elements get any. A warning for a quantized buffer (not a mere
    cast) behind which no parameter is left, whose values were drawn in this run and never trained or loaded,
    without a trainable matrix beside it, while gradient goes through it to others.

    ## Blind spots

    Quantizers are looked for in the first steps, and ever more rarely later (steps 5, 10, 15, 20, 30, 50,
    ...). Weights that are frozen on purpose (`requires_grad` False, as below adapters) are no finding.
    Quantization inside a compiled graph, or in an operation that takes weight and data at once, is not
    seen.

    ## Remedies

    `w + (Q(w) - w).detach()` on float32 weights: quantized values forward, the gradient of w backward.
    Neither another learning rate nor more bits bring the gradient back.

    ## References

    - Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons, arXiv 1308.3432
    - Esser et al. 2020, Learned Step Size Quantization, arXiv 1902.08153 (gradient of the scale)
    """

    id: ClassVar[str] = "PD601"
    name: ClassVar[str] = "severed-quantizer"
    example: ClassVar[str] = "severed_quantizer.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per quantizer and way of cutting the gradient off."""
        items = quantized(evidence)
        found = []
        for how in ("cut", "zero derivative", "scale only"):
            for members in by_quantizer(i for i in items if severed_as(i) == how):
                found.append(cls._severed(evidence, members, how))
        for members in by_quantizer(i for i in items if _is_lost_buffer(evidence, i)):
            found.append(cls._buffer(members))
        return found

    @classmethod
    def _severed(cls, evidence: Evidence, members: list[Quantized], how: str) -> Finding:
        total = sum(p.numel for p in evidence.parameters if p.trainable)
        first = members[0].quantizer
        place = first.place or first.rounding
        call = f"{first.function}()" if first.function else "the quantizer"
        many = len(members) > 1
        whom = f"{len(members)} quantized weights" if many else first.parameter
        them = "them" if many else "it"
        share = f"{percent(first.gradient_density or 0)} of the elements get gradient"
        if first.gradient_cosine is not None:
            share += f", with a cosine of {number(first.gradient_cosine)} to that of the used values"
        own = f"the backward of a custom function at {call}{at(place)} returns"
        what = {
            "cut": own + " no gradient"
            if first.route == "custom function"
            else f"{call}{at(place)} {_cut(first.cut_at_entry, many)}",
            "zero derivative": own + " zeros"
            if first.route == "custom function"
            else f"{call}{at(place)} leads back to {them} through "
            f"{several(first.zero_nodes) or 'a rounding'} only, whose derivative is zero",
            "scale only": f"{own} little: {share}"
            if first.route == "custom function"
            else f"through {call}{at(place)} only the scale is differentiated: {share}",
        }[how]
        text = (
            f"{whom} {'get' if many else 'gets'} {'almost no' if how == 'scale only' else 'no'} gradient, "
            f"{elements(members):,} of {total:,} trainable elements: {what}. {_proof(members, how)}"
        ).strip()
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=tuple(Subject(kind="parameter", name=i.quantizer.parameter) for i in members),
            message=text,
            locations=quantizer_locations(members),
            measured=_measured(evidence, members, how),
            prescriptions=ranked([("ste", _ste(members))]),
        )

    @classmethod
    def _buffer(cls, members: list[Quantized]) -> Finding:
        first = members[0].quantizer
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning",
            subjects=tuple(Subject(kind="buffer", name=i.quantizer.parameter) for i in members),
            message=(
                f"{who(members)}, {elements(members):,} elements, "
                f"{'are buffers' if len(members) > 1 else 'is a buffer'} quantized{at(first.place)} "
                "from values drawn in this run: no parameter is left that could be trained, and "
                "gradient goes through to what lies before."
            ),
            locations=quantizer_locations(members),
            measured={"weights": len(members), "elements": elements(members), "route": "buffer"},
            prescriptions=ranked(
                [("ste", "keep the float32 weight as the parameter and quantize it in the forward pass")]
            ),
        )


def _cut(at_entry: bool, many: bool) -> str:
    if at_entry:
        return (
            f"takes {'them without their' if many else 'it without its'} history (.data, detach or no_grad)"
        )
    return "returns values without history"


def _proof(members: Sequence[Quantized], how: str) -> str:
    """Return a sentence on what did not change."""
    first, last = members[0].quantizer.first, members[0].quantizer.last
    if first is None or last is None or last.step <= first.step:
        return ""
    same = first.mean_absolute_error == last.mean_absolute_error
    if same:
        return (
            f"The quantization error of {members[0].quantizer.parameter} is "
            f"{first.mean_absolute_error:.7g} at step {first.step} and, to all digits, at step {last.step}: "
            "neither the weight nor its codes moved."
        )
    flips = members[0].quantizer.changed_share
    codes = f"; {percent(flips)} of its codes changed" if flips is not None else ""
    moved = percent(members[0].quantizer.weight_moved)
    by = "weight decay" if how == "zero derivative" else "what little arrives"
    return f"{members[0].quantizer.parameter} has moved by {moved} of its norm, by {by}{codes}."


def _ste(members: Sequence[Quantized]) -> str:
    count = elements(members)
    return (
        "use w + (Q(w) - w).detach(): the forward pass computes with the same quantized values, and "
        f"{count:,} elements get the gradient of what was used"
    )


def _measured(
    evidence: Evidence, members: Sequence[Quantized], how: str
) -> dict[str, float | int | str | None]:
    first = members[0].quantizer
    trainable = [p for p in evidence.parameters if p.trainable and optimizer_of(evidence, p) is not None]
    errors = [i.quantizer.last.mean_absolute_error for i in members if i.quantizer.last is not None]
    ratios = [i.quantizer.last.sqnr_db for i in members if i.quantizer.last is not None]
    decibels = [r for r in ratios if r is not None]
    return {
        "route": how,
        "weights": len(members),
        "elements": elements(members),
        "share_of_trainable": elements(members) / max(sum(p.numel for p in trainable), 1),
        "steps_without_gradient": min(
            i.parameter.gradient.absent for i in members if i.parameter is not None
        ),
        "steps_with_zero_gradient": min(
            i.parameter.gradient.all_zero for i in members if i.parameter is not None
        ),
        "gradient_density": 0.0 if how != "scale only" else first.gradient_density,
        "gradient_cosine": first.gradient_cosine,
        "mean_absolute_error": _weighted(members) if errors else None,
        "error_is_constant": int(
            all(
                i.quantizer.first is not None
                and i.quantizer.last is not None
                and i.quantizer.first.mean_absolute_error == i.quantizer.last.mean_absolute_error
                for i in members
            )
        ),
        "sqnr_db_min": min(decibels, default=None),
        "codes_changed_share": first.changed_share,
    }


def _weighted(members: Sequence[Quantized]) -> float:
    """Return the mean absolute error over all elements of the weights."""
    known = [(i.quantizer.numel, i.quantizer.last) for i in members]
    pairs = [(count, last.mean_absolute_error) for count, last in known if last is not None]
    return sum(count * error for count, error in pairs) / sum(count for count, _ in pairs)


def _is_lost_buffer(evidence: Evidence, item: Quantized) -> bool:
    quantizer = item.quantizer
    if quantizer.kind != "quantizer" or quantizer.route != "buffer":  # a cast loses little, and says nothing
        return False
    if quantizer.was_trained or not quantizer.carries_gradient:
        return False
    holder = quantizer.parameter.rpartition(".")[0]
    matrices = [p for p in evidence.parameters if p.trainable and len(p.shape) >= 2]
    # what adapts the matrix of a module goes for its bias as well
    beside = (q for q in evidence.quantizers if q.parameter.rpartition(".")[0] == holder)
    largest = max(q.numel for q in beside if q.route == "buffer")
    return not any(_is_adapter(p, largest, holder) for p in matrices)


def _is_adapter(matrix: Parameter, largest: int, holder: str) -> bool:
    """Tell whether a trainable matrix adapts a frozen one, of ``largest`` elements: in the same module, or a
    small one beside it.
    """
    if matrix.name.rpartition(".")[0] == holder or (holder and matrix.name.startswith(f"{holder}.")):
        return True
    around = holder.rpartition(".")[0]
    beside = matrix.name.startswith(f"{around}.") if around else "." not in matrix.name
    return beside and 2 * matrix.numel <= largest
