"""Averages in a low format, whose increments round away: shared by PD301 and PD304."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from precdoctor.evidence import Accumulation, Evidence, Place
from precdoctor.formats import Format
from precdoctor.rules.accumulated import (
    accumulation_locations,
    accumulation_subjects,
    arrival,
    low_format,
    origin_of,
    who,
)
from precdoctor.rules.finding import SEVERITIES, Finding, Severity
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import MIN_STEPS
from precdoctor.rules.wording import at, number, percent

#: EDQ of the increments below which the average is said not to follow, and share of increments that must be
#: lost
MAX_EDQ, MIN_LOST = 0.5, 0.1
#: or share of the elements that never changed, where a few large increments hide the others (variances of
#: units)
MOST_STILL = 0.8
#: share of lost increments from which a distance counts although it is not sure
MOST_LOST = 0.5
#: how far what is averaged may be from the average, relative to it, before the average moves at all: beyond
#: this it never comes near (bfloat16: decay 0.996 and more; float16: 0.9995)
MAX_RADIUS = 0.5
#: distance from the exact average, relative to the way that one has come, from which an error and a warning
#: are due (measured, bfloat16: 0.90 for a decay of 0.999, 0.02 for 0.9; float32 0.000)
ERROR_DISTANCE, WARNING_DISTANCE = 0.25, 0.1
#: the distance must be this much larger than that which rounding the exact average once would leave
OVER_FLOOR = 3.0


def stuck_averages(
    evidence: Evidence, records: Iterable[Accumulation], rule: tuple[str, str], noun: str = "average"
) -> list[Finding]:
    """Return one finding per line that updates averages, as grave as the gravest of them."""
    lines: dict[Place | None, list[tuple[Severity, Accumulation, Format]]] = {}
    for record in records:
        fmt = low_format(record)
        severity = _severity(record, fmt) if fmt is not None and record.kind == "average" else None
        if fmt is not None and severity is not None:
            lines.setdefault(record.place, []).append((severity, record, fmt))
    found = []
    for members in lines.values():
        severity, record, fmt = max(members, key=lambda m: SEVERITIES.index(m[0]))
        names = tuple(sorted({name for _, other, _ in members for name in other.names}))
        together = replace(record, names=names, tensors=sum(other.tensors for _, other, _ in members))
        found.append(_finding(evidence, together, fmt, severity, rule, noun))
    return found


def _finding(
    evidence: Evidence,
    record: Accumulation,
    fmt: Format,
    severity: Severity,
    rule: tuple[str, str],
    noun: str,
) -> Finding:
    text = f"{who(record, noun)} in {record.format}: {percent(record.lost_share)} of the increments "
    text += f"changed nothing (EDQ {number(record.edq)})"
    radius = _radius(record, fmt)
    if record.decay is not None and radius is not None:
        text += (
            f". An update moves it by {number(1 - record.decay)} of the distance, half an ulp is "
            f"{number(fmt.eps / 4)} .. {number(fmt.eps / 2)} of the value: it moves only towards what is "
            f"{percent(radius)} or more away"
        )
    if record.distance is not None:
        text += f". The exact average has gone a way of which it is {percent(record.distance)} short"
    place = origin_of(evidence, record)
    return Finding(
        rule=rule[0],
        name=rule[1],
        severity=severity,
        subjects=accumulation_subjects(record),
        message=text + ".",
        locations=accumulation_locations(evidence, record),
        measured={
            **arrival(record, fmt),
            "decay": record.decay,
            "still_share": record.still_share,
            "distance": record.distance,
            "distance_of_rounding": record.floor,
            "updates": record.updates,
            "tensors": record.tensors,
        },
        prescriptions=ranked(
            [
                (
                    "float32-accumulator",
                    f"keep it in float32{at(place)}: half an ulp is 6e-8 of the value there, and what is "
                    "averaged may stay as it is",
                )
            ]
        ),
    )


def _radius(record: Accumulation, fmt: Format) -> float | None:
    """Return how far away, relative to the average, what it averages must at least be to move it."""
    if record.decay is None or not 0 < record.decay < 1:
        return None
    return fmt.eps / 4 / (1 - record.decay)


def _severity(record: Accumulation, fmt: Format) -> Severity | None:
    if record.updates < MIN_STEPS or record.lost_share < MIN_LOST:
        return None
    radius = _radius(record, fmt)
    never_near = radius is not None and radius > MAX_RADIUS
    if record.distance is not None and record.floor is not None:
        if record.floor * OVER_FLOOR < record.distance:
            if record.distance >= ERROR_DISTANCE:
                return "error"
            return "warning" if record.distance >= WARNING_DISTANCE else None
        # what is averaged is noise, in which the few large increments pass: the distance alone is in doubt
        if never_near and record.distance >= ERROR_DISTANCE and record.lost_share >= MOST_LOST:
            return "warning"
        if record.floor * OVER_FLOOR < 1:  # the way is long enough to tell, and it has come along
            return None
    frozen = record.edq_high < MAX_EDQ or record.still_share > MOST_STILL
    return "error" if frozen and never_near else None
