"""Trained weights that a line of the program updates itself, without an optimizer: PD101 and PD102."""

from __future__ import annotations

from collections.abc import Callable

from precdoctor.evidence import Accumulation, Evidence
from precdoctor.formats import Format, half_ulp
from precdoctor.rules.accumulated import (
    accumulation_locations,
    accumulation_subjects,
    arrival,
    low_format,
    origin_of,
    who,
)
from precdoctor.rules.descent import FROZEN_EDQ, FROZEN_LOST_SHARE, FROZEN_STUCK_SHARE, MIN_RELATIVE_RMS
from precdoctor.rules.finding import Finding, Severity
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.wording import at, number, percent

#: updates of one weight that were looked at, from which it is judged
MIN_UPDATES = 8


def updated_by_hand(
    evidence: Evidence, rule: tuple[str, str], grade: Callable[[Accumulation], Severity | None]
) -> list[Finding]:
    """Return one finding per line that updates weights itself, as grave as ``grade`` says of what arrives."""
    found = []
    for record in evidence.accumulations:
        fmt = low_format(record)
        if record.kind != "update" or fmt is None or not _is_meant(record):
            continue
        severity = grade(record)
        if severity is not None:
            found.append(_finding(evidence, record, fmt, severity, rule))
    return found


def is_frozen_by_hand(record: Accumulation) -> bool:
    """Tell whether none or almost none of the updates arrives."""
    lost = record.lost_share > FROZEN_LOST_SHARE or record.still_share > FROZEN_STUCK_SHARE
    return lost and record.edq_high < FROZEN_EDQ


def _is_meant(record: Accumulation) -> bool:
    often = record.updates >= MIN_UPDATES * record.tensors
    return often and abs(record.increment) >= MIN_RELATIVE_RMS * abs(record.value)


def _finding(
    evidence: Evidence, record: Accumulation, fmt: Format, severity: Severity, rule: tuple[str, str]
) -> Finding:
    text = f"{who(record, 'parameter')} in {record.format}, updated{at(record.place)} without an optimizer"
    if record.value and record.increment:
        grows = 1.0 if (record.value > 0) == (record.increment > 0) else -1.0
        half = half_ulp(fmt, abs(record.value), grows)
        text += (
            f": |w| = {number(abs(record.value))}, half-ULP {number(half)}, intended update "
            f"{number(abs(record.increment))}"
        )
    text += f"; {percent(record.lost_share)} of the updates seen lost, EDQ {number(record.edq)}"
    return Finding(
        rule=rule[0],
        name=rule[1],
        severity=severity,
        subjects=accumulation_subjects(record, "parameter"),
        message=text + ".",
        locations=accumulation_locations(evidence, record),
        measured={
            **arrival(record, fmt),
            "still_share": record.still_share,
            "updates": record.updates,
            "tensors": record.tensors,
        },
        prescriptions=ranked(
            [
                ("autocast", f"float32 weights{at(origin_of(evidence, record))} take updates of this size"),
                ("float32-accumulator", "update float32 copies, and round them into these weights"),
            ]
        ),
    )
