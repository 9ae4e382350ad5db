"""Trained weights that are added into others of a low format: the part of PD106 that no optimizer is in."""

from __future__ import annotations

from precdoctor.evidence import Accumulation, Evidence
from precdoctor.formats import Format
from precdoctor.rules.accumulated import (
    accumulation_locations,
    accumulation_subjects,
    arrival,
    low_format,
    origin_of,
    who,
)
from precdoctor.rules.finding import Finding, Severity
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.wording import at, number, percent

#: EDQ of what is merged below which a warning and an error are due, as for weights that are rounded in place
WARNING_EDQ, ERROR_EDQ = 0.9, 0.7


def lossy_merges(evidence: Evidence, rule: str, name: str) -> list[Finding]:
    """Return a finding per line that merges trained weights into a base whose format loses part of them."""
    found = []
    for record in evidence.accumulations:
        fmt, severity = low_format(record), _severity(record)
        if record.kind == "merge" and fmt is not None and severity is not None:
            found.append(_finding(evidence, record, fmt, severity, (rule, name)))
    return found


def _finding(
    evidence: Evidence, record: Accumulation, fmt: Format, severity: Severity, rule: tuple[str, str]
) -> Finding:
    place = origin_of(evidence, record)
    return Finding(
        rule=rule[0],
        name=rule[1],
        severity=severity,
        subjects=accumulation_subjects(record),
        message=(
            f"{who(record, 'weight')}: trained weights are merged{at(record.place)} into a base in "
            f"{record.format}, where nothing below {number(fmt.eps / 4)} .. {number(fmt.eps / 2)} of a value "
            f"can be added to it; {percent(record.lost_share)} of the elements did not change, "
            f"{percent(max(record.edq, 0))} of what was learnt is in the base (EDQ {number(record.edq)})."
        ),
        locations=accumulation_locations(evidence, record),
        measured={
            **arrival(record, fmt),
            "merges": record.updates,
        },
        prescriptions=ranked(
            [
                (
                    "float32-accumulator",
                    f"keep the base in float32{at(place)} as long as something is merged into it, and "
                    "cast it "
                    "where it is used or once at the end",
                )
            ]
        ),
    )


def _severity(record: Accumulation) -> Severity | None:
    if record.edq_high < ERROR_EDQ:
        return "error"
    return "warning" if record.edq_high < WARNING_EDQ else None
