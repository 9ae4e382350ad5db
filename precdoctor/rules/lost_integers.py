"""How rules read the evidence of integers that lost digits: shared by PD502 and PD508."""

from __future__ import annotations

import math

from precdoctor.evidence import IntegerUse, LostIntegers
from precdoctor.rules.finding import Location, Subject
from precdoctor.rules.reading import functions, locations
from precdoctor.rules.wording import at, number, percent

#: numbers from which shares say something
MIN_NUMBERS = 8
#: share of the numbers changed, or no longer told apart
MIN_SHARE = 0.01
#: error of a phase, radians; of a remainder, share of its period; of a difference, share of its spread
MIN_PHASE, MIN_REMAINDER, MIN_DIFFERENCE = 0.1, 1 / 64, 0.05
#: error of a number that is compared or looked up with, or added to data
MIN_STEP, MIN_BIAS = 0.5, 0.1
#: root mean square error of means of a sequence by probabilities, as a share of the distance between two
#: (measured: below 0.05 for bells two and more wide, 0.46 where a soft argmax in bfloat16 lost its pixel)
MIN_MEAN = 0.25
#: share of a sequence's numbers that coincide with another
MANY = 0.2

_LOW = ("float16", "bfloat16")
_WORDS = {
    "trigonometric": "a sine or cosine of them is off by up to {} rad",
    "periodic": "their remainder is off by up to {} of the period",
    "comparison": "they are compared, and off by up to {}",
    "index": "they are made integers again and used to look up, off by up to {}",
    "difference": "their differences are off by up to {} of the spread",
    "offset": "most of each is subtracted again, and what is left is off by up to {} of its spread",
    "mean": "means of them by probabilities are off by {} of the distance between two",
    "bias": "they are added to data, off by up to {}",
    "feature": "they are multiplied with weights, off by up to {}",
    "infinity": "what is infinite is used",
}

_MADE = {"made": "are made in", "given": "come in", "counted": "are counted in"}


def is_position(item: LostIntegers) -> bool:
    """Tell whether numbers are positions: in 16 bits, and a sequence or the argument of a sine."""
    waves = any(use.kind == "trigonometric" and _matters(item, use) for use in item.uses)
    return item.format in _LOW and (item.sequence or waves)


def is_lossy(item: LostIntegers) -> bool:
    """Tell whether enough numbers were changed, or are no longer told apart, to speak of it."""
    if item.how == "given":
        return item.numbers >= MIN_NUMBERS
    return item.numbers * item.times >= MIN_NUMBERS and (
        item.changed_share >= MIN_SHARE or coinciding(item) >= MIN_SHARE
    )


def coinciding(item: LostIntegers) -> float:
    """Return the share of the different numbers that are not different any more."""
    return 1 - item.distinct_after / item.distinct_before if item.distinct_before else 0.0


def decisive(item: LostIntegers) -> IntegerUse | None:
    """Return the use that depends most plainly on what was lost; None where there is none."""
    if not is_lossy(item):
        return None
    return next(
        (use for kind in _WORDS for use in item.uses if use.kind == kind and _matters(item, use)), None
    )


def _matters(item: LostIntegers, use: IntegerUse) -> bool:
    """Tell whether a use of numbers suffers from what they lost."""
    match use.kind:
        case "trigonometric":
            return use.error >= MIN_PHASE
        case "periodic":
            return use.error >= MIN_REMAINDER
        case "comparison" | "index":
            return use.error >= MIN_STEP
        case "difference":
            return use.error >= MIN_DIFFERENCE or (item.sequence and coinciding(item) >= MIN_SHARE)
        case "offset":
            return use.error >= MIN_DIFFERENCE
        case "infinity":
            # those of a mask are still told apart: what became of it is another rule's business
            return coinciding(item) >= MIN_SHARE
        case "mean":
            return item.sequence and use.error >= MIN_MEAN
        case "bias":
            return item.sequence and coinciding(item) >= MANY and use.error >= MIN_BIAS
        case _:
            return item.sequence and coinciding(item) >= MANY and item.how != "autocast"


def what_happened(item: LostIntegers, noun: str) -> str:
    """Return the mechanism with its numbers."""
    made = _MADE.get(item.how, "are cast to")
    by = {"promotion": ", by an operation with other numbers,", "autocast": ", by autocast,"}.get(
        item.how, ""
    )
    largest = f"up to {number(item.largest)}"
    text = f"{item.numbers:,} {noun} {largest} {made} {item.format}{by}{at(item.place)}"
    if item.distinct_before:
        text += f": of {item.distinct_before:,} different ones {item.distinct_after:,} are left"
        if item.changed_share:
            text += f", {percent(item.changed_share)} are changed"
    if item.overflowed:
        text += f", {item.overflowed:,} are infinite"
    elif math.isfinite(item.error):
        text += f", by up to {number(item.error)}"
    use = decisive(item) or next((u for u in item.uses if u.kind in _WORDS), None)
    if use is not None:
        text += f"; {_WORDS[use.kind].format(number(use.error))}{at(use.place)}"
    return text + "."


def integer_subjects(item: LostIntegers) -> tuple[Subject, ...]:
    """Return the function that did it, and the module in whose forward it happened or was used."""
    use = decisive(item)
    found = [Subject(kind="op", name=name) for name in functions([item.place, use.place if use else None])]
    if item.module:
        found.append(Subject(kind="module", name=item.module))
    return tuple(found) or (Subject(kind="op", name="cast"),)


def integer_locations(item: LostIntegers) -> tuple[Location, ...]:
    """Return the line that lost digits (cause) and those that use the numbers (sites)."""
    uses = [use.place for use in item.uses if _matters(item, use)] or [use.place for use in item.uses]
    return locations([item.place], uses)


def measured(item: LostIntegers) -> dict[str, float | int | str | None]:
    """Return the numbers that prove it."""
    use = decisive(item)
    return {
        "format": item.format,
        "numbers": item.numbers,
        "distinct_before": item.distinct_before,
        "distinct_after": item.distinct_after,
        "changed_share": item.changed_share,
        "largest": item.largest,
        "error": item.error,
        "use": use.kind if use is not None else None,
        "use_error": use.error if use is not None else None,
    }
