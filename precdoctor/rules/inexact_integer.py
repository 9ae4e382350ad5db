"""PD508: ids, times and counts in a format that can't hold them."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Evidence, LostIntegers
from precdoctor.rules.finding import Finding, Severity
from precdoctor.rules.lost_integers import (
    coinciding,
    decisive,
    integer_locations,
    integer_subjects,
    is_lossy,
    is_position,
    measured,
    what_happened,
)
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.rule import Rule

#: share of the numbers that coincide with another from which a feature is worth a note
NOTED = 0.2


class InexactInteger(Rule):
    """Integers (ids, labels, times, counts) are cast to a format that can't hold them, and are used.

    ## What it means

    A format has all integers up to 2^p only: 256 in bfloat16, 2,048 in float16, 16.8 million in float32. A
    Unix time in float32 is a multiple of 128 seconds. Ids that went through half precision and back are
    other ids; beyond 65,504 float16 has infinity. The sum of a mask in bfloat16, and its cumulative sum,
    count to 256.

    ## Why it hurts

    Different things become the same. Of 4,000 event times 984 were left, and a feature of period ten minutes
    was noise. A look-up gets the row of another id.

    ## Criterion

    A warning where at least 1 % of the numbers were changed or no longer told apart, and something that
    depends on them followed: a remainder that is off by 1/64 of its period or more, a sine that is off by
    0.1 rad, a look-up with numbers made integers again, a comparison of one with another, a difference or a
    subtraction that leaves an error of 5 % of its spread, or an infinity used further where 1 % or more are
    no longer told apart (a mask's one large number still is: PD504). A note where numbers, one per row and
    a fifth of which coincide, are multiplied with weights as they are.

    ## Blind spots

    Numbers that were rounded before torch had them, and floats beyond all fractions of their own format
    (16.8 million in float32), of which nobody can tell that they are meant as integers. As a magnitude (a
    pixel, a price, a length that something is divided by) an integer may be rounded like any other number:
    that is no finding.

    ## Remedies

    Keep ids in int64. Subtract an offset from times in int64 or float64 before the cast, or take the
    remainder in integers.

    ## References

    - awslabs/graphstorm#704
    - Goldberg 1991, What Every Computer Scientist Should Know About Floating-Point Arithmetic
    """

    id: ClassVar[str] = "PD508"
    name: ClassVar[str] = "inexact-integer"
    example: ClassVar[str] = "inexact_integer.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per line that lost digits."""
        found = []
        for item in evidence.integers:
            if decisive(item) and not is_position(item):
                found.append(cls._finding(item, "warning"))
            elif not decisive(item) and is_lossy(item) and _is_noted(item):
                found.append(cls._finding(item, "note"))
        return found

    @classmethod
    def _finding(cls, item: LostIntegers, severity: Severity) -> Finding:
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=integer_subjects(item),
            message=what_happened(item, "numbers"),
            locations=integer_locations(item),
            measured=measured(item),
            prescriptions=ranked(
                [
                    ("exact-integer", "keep them in int64, and subtract an offset before the cast"),
                    ("float64", "float64 has all integers up to 9e15"),
                ]
            ),
        )


def _is_noted(item: LostIntegers) -> bool:
    is_id = item.one_per_row and item.how != "autocast"
    return is_id and coinciding(item) >= NOTED and any(use.kind == "feature" for use in item.uses)
