"""PD505: a running sum that has stopped counting."""

from __future__ import annotations

import math
from typing import ClassVar

from precdoctor.evidence import Accumulation, Evidence
from precdoctor.formats import Format, half_ulp
from precdoctor.rules.accumulated import (
    accumulation_locations,
    accumulation_subjects,
    origin_of,
    stands_at,
    who,
)
from precdoctor.rules.finding import Finding, Severity
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import format_named
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, number, percent

#: share of the sum that is missing from which a warning and an error are due: metrics are read to two digits
WARNING_SHARE, ERROR_SHARE = 0.05, 0.2
#: additions, all of them lost, from which a sum stands still; and steps to the next value of the format that
#: must be missing, so that the same in float32 would have left
STANDING_UPDATES, STANDING_ULPS = 8, 2.0


class SwampedSum(Rule):
    """A running sum is kept in a low format: once it is large, what is added rounds away.

    ## What it means

    A value of 8 bits of significand takes no addition below 1/512 to 1/256 of itself. A sum of losses of
    about 2 in bfloat16 grows to 512 and stays there; a count of correct answers in float16 grows to 2048 by
    ones. Long before, each addition is rounded to the sum's own spacing.

    ## Why it hurts

    The average that is printed, logged and compared is the sum over the count, and the count goes on: the
    loss seems to fall as 1/n. A best checkpoint is chosen, a schedule is moved or training stops on that.

    ## Criterion

    What was added is summed in float64 beside what is stored, while operations are seen; between, the value
    is read, and additions that have not changed it count as lost, each as large as the last ones seen. A
    warning where 5 % or more of the sum are missing, an error from 20 % on; a warning, too, where all
    additions, at least 8, were lost and two ulps or more are missing: a bias, a price or a threshold that is
    meant to move and never has. The share speaks of the sum or of
    the root of the sum of squares of what was added, whichever is larger, so that sums around zero are no
    alarm.

    ## Blind spots

    A sum that is a new tensor each time (`total = total + loss`) is seen only while the operation probe is
    awake; that it stands still is taken to go on where it stood still then. Sums that live outside the run's
    tensors are not seen.

    ## Remedies

    Sum in float32 or float64, or in Python: `total += loss.item()`.

    ## References

    - Higham 1993, The accuracy of floating point summation, SIAM J. Sci. Comput. 14(4)
    - Lightning-AI/pytorch-lightning issue 18620; huggingface/transformers issue 8561
    """

    id: ClassVar[str] = "PD505"
    name: ClassVar[str] = "swamped-sum"
    example: ClassVar[str] = "swamped_sum.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per line that adds to a sum."""
        found = []
        for record in evidence.accumulations:
            fmt = format_named(record.format)
            severity = sum_severity(record) or ("warning" if _stands_still(record, fmt) else None)
            if (
                record.kind == "sum"
                and not (record.counts or record.compensated)
                and fmt is not None
                and severity is not None
            ):
                found.append(cls._finding(evidence, record, fmt, severity))
        return found

    @classmethod
    def _finding(cls, evidence: Evidence, record: Accumulation, fmt: Format, severity: Severity) -> Finding:
        place = origin_of(evidence, record)
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=accumulation_subjects(record),
            message=sum_text(record, fmt, "sum"),
            locations=accumulation_locations(evidence, record),
            measured=sum_measures(record, fmt),
            prescriptions=ranked(
                [
                    (
                        "float32-accumulator",
                        f"make the sum in float32{at(place)}: it takes additions of this size up to "
                        f"{number(_float32_limit(record))}",
                    ),
                    (
                        "python-number",
                        "add numbers of Python, `.item()`, where waiting for the device is no matter",
                    ),
                ]
            ),
        )


def _stands_still(record: Accumulation, fmt: Format | None) -> bool:
    """Tell whether nothing that was added has arrived, although it would have moved the sum."""
    if fmt is None or record.lost_share < 1.0 or record.updates < STANDING_UPDATES or not record.value:
        return False
    ulp = 2 * half_ulp(fmt, record.value, 1.0)
    return abs(record.missing) >= STANDING_ULPS * ulp


def sum_severity(record: Accumulation) -> Severity | None:
    """Return how grave it is that a part of a sum is missing."""
    share = missing_share(record)
    return "error" if share >= ERROR_SHARE else "warning" if share >= WARNING_SHARE else None


def missing_share(record: Accumulation) -> float:
    """Return the share of the sum that is missing."""
    whole = max(abs(record.value + record.missing), record.spread)
    return abs(record.missing) / whole if whole else 0.0


def sum_text(record: Accumulation, fmt: Format, noun: str) -> str:
    """Return what has become of a sum, with its arithmetic."""
    text = f"{who(record, noun)} in {record.format}: at {number(record.value)}"
    if record.increment:
        half = half_ulp(
            fmt, record.value, math.copysign(1.0, record.increment) * math.copysign(1.0, record.value)
        )
        text += f" half an ulp is {number(half)}, and {number(record.increment)} was to be added"
        if half >= abs(record.increment):
            text += ": nothing changes"
    if record.standing >= 1:
        text += f". It has not moved for {count(round(record.standing), 'addition')}"
    share = missing_share(record)
    missing, whole = number(abs(record.missing)), number(record.value + record.missing)
    return f"{text}. {missing} of {whole} are missing ({percent(share)})."


def sum_measures(record: Accumulation, fmt: Format) -> dict[str, float | int | str | None]:
    """Return the numbers of a sum by name."""
    return {
        "format": record.format,
        "value": record.value,
        "increment": record.increment,
        "missing": record.missing,
        "missing_share": missing_share(record),
        "stands_at": stands_at(fmt, record.increment) if record.increment else None,
        "standing_updates": record.standing,
        "recent_lost_share": record.recent_lost_share,
        "updates_seen": record.updates,
    }


def _float32_limit(record: Accumulation) -> float:
    fmt = format_named("float32")
    return stands_at(fmt, record.increment) if fmt is not None and record.increment else math.inf
