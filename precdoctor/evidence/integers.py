"""What was seen of integers, and of numbers that are evenly spaced, in formats that can't tell them apart."""

from __future__ import annotations

from dataclasses import dataclass

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerUse:
    """What such numbers were used for."""

    #: "trigonometric", "periodic" (a remainder), "comparison", "index" (made integers again), "difference",
    #: "offset" (most of it subtracted), "bias" (added to data), "feature" (multiplied with weights),
    #: "infinity" (those that became infinite are used), "mean" (by probabilities that are trained)
    kind: str
    place: Place | None = None
    #: largest error of what goes in: of a phase in radians, of a remainder as a share of its period,
    #: of a difference as a share of its spread, else in the numbers' own unit; of means the root mean square
    #: error of what comes out, as a share of the distance between two numbers
    error: float = 0.0
    times: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LostIntegers:
    """Numbers that were cast to, or made in, a format with too few digits, by the line that did it."""

    #: "cast": of integers, or fractions of them; "promotion": an operation of integers with other numbers;
    #: "autocast": a cast that autocast made; "made": a range made in the format; "counted": a sum, or a
    #: running sum, of integers in it; "given": rounded before
    how: str
    #: format before and after
    before: str
    format: str
    place: Place | None = None
    #: qualified name of the module in whose forward it happened; empty outside
    module: str = ""
    #: they follow one another with equal distances: positions
    sequence: bool = False
    #: there is one of them per row, as of ids; an image or a sound has many
    one_per_row: bool = False
    #: times it was seen
    times: int = 0
    #: largest case: numbers looked at, different ones before and after, and the share that was changed
    numbers: int = 0
    distinct_before: int = 0
    distinct_after: int = 0
    changed_share: float = 0.0
    #: largest magnitude, largest error, and how many became infinite
    largest: float = 0.0
    error: float = 0.0
    overflowed: int = 0
    uses: tuple[IntegerUse, ...] = ()
