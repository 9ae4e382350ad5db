"""PD602: the weight moves, and what the forward pass uses does not."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Evidence
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.quantized import Quantized, by_quantizer, elements, quantized, quantizer_locations, who
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, number, percent

#: share of the used values that a fresh quantization would change, from which they are stale
MIN_STALE = 0.02
#: motion of what is used, as a share of the weight's own, below which it does not follow
MAX_FOLLOWING = 0.05
#: motion below which only the sum with the weight was rounded differently
STILL = 1e-6
#: steps over which codes must have been seen to say that they do not change
MIN_SPAN = 50
#: share of the codes ever changed below which the weight moves in a dead zone (measured: 3.0 %; healthy: 84)
MAX_CHANGED = 0.05


class StaleQuantizedWeight(Rule):
    """The optimizer moves a weight, and the forward pass goes on with values that were made of it earlier.

    ## What it means

    A copy of the weight, quantized or cast to 16 bits, was made once and is used again and again: a cache
    whose key does not change with the weight (`_version` is not advanced by a fused optimizer step, nor by
    updates through `.data`; `data_ptr()` never changes). A note, where the copy is made anew and hardly a
    code changes: the updates lie in the grid's dead zone. Casts that autocast keeps are PD408.

    ## Why it hurts

    The gradient is that of the old copy, for ever: the weight runs away in one direction, and the loss does
    not see it. Measured: weights moved by 8.05 of their norm and what was used by 0; the SQNR between the
    two fell to -0.01 dB, where 18 to 20 dB are healthy.

    ## Criterion

    An error where the values used in a training forward were made at least one optimizer step before,
    quantizing the weight afresh would change more than 2 % of them, and what is used moved by less than 5 %
    of what the weight moved. A copy that is refreshed every few steps follows, and is no finding. A note
    where codes were seen over at least 50 steps, less than 5 % of them ever changed, and the quantizer
    passes gradient.

    ## Blind spots

    Looked at in the first steps, and ever more rarely later (steps 5, 10, 15, 20, 30, 50, ...). A learning
    rate that is too low for any format looks like a dead zone: run the program once without the quantizer,
    and if the loss is the same it is the learning rate.

    ## Remedies

    Quantize in every forward pass, or make the cache anew after each optimizer step.

    ## References

    - PyTorch documentation, Autograd mechanics: `_version` counts in-place operations that autograd sees
    """

    id: ClassVar[str] = "PD602"
    name: ClassVar[str] = "stale-quantized-weight"
    example: ClassVar[str] = "stale_quantized_weight.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per quantizer whose values are stale, and a note per dead zone."""
        items = quantized(evidence)
        old = [i for i in items if is_stale(i)]
        stale = [i for i in old if not is_kept_by_autocast(evidence, i)]  # the others are PD408
        found = [cls._stale(members) for members in by_quantizer(stale)]
        dead = [i for i in items if i not in old and _is_dead(i)]
        return found + [cls._dead(members) for members in by_quantizer(dead)]

    @classmethod
    def _stale(cls, members: list[Quantized]) -> Finding:
        worst = max(members, key=lambda i: i.quantizer.weight_moved).quantizer
        cast = worst.kind == "cast"
        made = f"cast to {worst.format}" if cast else "quantized"
        where = at(worst.rounding or worst.place)
        text = (
            f"The forward pass uses values of {who(members)} that were {made}{where} "
            f"up to {worst.age_steps:,} optimizer steps before: "
            f"{worst.parameter} has moved by {number(worst.weight_moved)} of its norm, what is used "
            f"{f'by {number(worst.used_moved)}' if worst.used_moved > STILL else 'not at all'}"
        )
        if worst.stale_share is not None:
            text += f"; made anew, {percent(worst.stale_share)} of the values would differ"
        why = "quantize in every forward pass, or drop the cache after each optimizer step"
        last = worst.last
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=tuple(Subject(kind="parameter", name=i.quantizer.parameter) for i in members),
            message=text + ".",
            locations=quantizer_locations(members),
            measured={
                "weights": len(members),
                "elements": elements(members),
                "age_steps": worst.age_steps,
                "stale_share": worst.stale_share,
                "weight_moved": worst.weight_moved,
                "used_moved": worst.used_moved,
                "sqnr_db_last": last.sqnr_db if last is not None else None,
            },
            prescriptions=ranked([("refresh-cache", why)]),
        )

    @classmethod
    def _dead(cls, members: list[Quantized]) -> Finding:
        first = members[0].quantizer
        changed = max(i.quantizer.changed_share or 0 for i in members)
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="note",
            subjects=tuple(Subject(kind="parameter", name=i.quantizer.parameter) for i in members),
            message=(
                f"In {count(first.span_steps, 'step')} {percent(changed)} of the codes of {who(members)} "
                f"changed at most, {number(first.flips_per_step)} of them per step: updates stay within the "
                "grid's dead zone. Run it without the quantizer: with the same loss it is the learning rate, "
                "not the grid."
            ),
            locations=quantizer_locations(members),
            measured={
                "weights": len(members),
                "elements": elements(members),
                "codes_changed_share": changed,
                "flips_per_step": first.flips_per_step,
                "span_steps": first.span_steps,
            },
        )


def is_stale(item: Quantized) -> bool:
    """Tell whether the forward pass uses values of a weight that has moved since they were made."""
    quantizer = item.quantizer
    return _is_old(item) and quantizer.used_moved < MAX_FOLLOWING * quantizer.weight_moved


def is_kept_by_autocast(evidence: Evidence, item: Quantized) -> bool:
    """Tell whether an old copy of a weight is a cast that autocast keeps.

    Where a region spans several steps, a cast that is made anew at its end does not make up for those.
    """
    quantizer = item.quantizer
    if quantizer.kind != "cast" or not _is_old(item):
        return False
    cast_in = any(r.enabled and r.format == quantizer.format for r in evidence.regions)
    if not cast_in and not any(f.autocast == quantizer.format for f in evidence.forwards):
        return False
    return is_stale(item) or any(r.steps_inside > 1 for r in evidence.regions)


def _is_old(item: Quantized) -> bool:
    """Tell whether values were used that would be others, had they been made anew."""
    quantizer = item.quantizer
    if item.parameter is None or quantizer.age_steps < 1 or quantizer.weight_moved == 0:
        return False
    return quantizer.stale_share is None or quantizer.stale_share >= MIN_STALE


def _is_dead(item: Quantized) -> bool:
    quantizer = item.quantizer
    return (
        item.parameter is not None
        and quantizer.kind == "quantizer"
        and quantizer.route == "open"
        and quantizer.changed_share is not None
        and quantizer.span_steps >= MIN_SPAN
        and quantizer.changed_share < MAX_CHANGED
        and quantizer.weight_moved > 0
    )
