"""Weights that are loaded rounded, again and again, while they train: the part of PD702 without a file."""

from __future__ import annotations

from precdoctor.evidence import Evidence, Snapshot
from precdoctor.rules.finding import Finding, Severity, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import format_named, locations
from precdoctor.rules.wording import at, count, number, percent

#: EDQ of what has moved between loads, below which a warning and an error are due, as for weights that are
#: rounded in place
WARNING_EDQ, ERROR_EDQ = 0.9, 0.7
#: round trips from which they are a habit, and how many of them there are for each load of something else
MIN_TRIPS, TRIPS_EACH = 3, 4
#: share of what was cut off that is there again at the next load, from which a finer copy is kept: 1 where it
#: is, 0 or less where not
KEPT = 0.5


def round_trips(evidence: Evidence, rule: str, name: str) -> list[Finding]:
    """Return a finding per line that loads rounded weights and takes back what they had moved."""
    found = [(s, _severity(s)) for s in evidence.snapshots]
    return [_finding(s, severity, (rule, name)) for s, severity in found if severity is not None]


def _finding(snapshot: Snapshot, severity: Severity, rule: tuple[str, str]) -> Finding:
    edq = snapshot.edq or 0.0
    weights = f"{count(len(snapshot.parameters), 'weight')} in {snapshot.trained}"
    through = f", by way of a file{at(snapshot.saved)}" if snapshot.saved is not None else ""
    return Finding(
        rule=rule[0],
        name=rule[1],
        severity=severity,
        subjects=tuple(Subject(kind="parameter", name=name) for name in snapshot.parameters[:20]),
        message=(
            f"{weights} are loaded{at(snapshot.place)} with their own values rounded to "
            f"{snapshot.format}{through}, {count(snapshot.times, 'time')}, and go on from there: of the "
            f"elements that had moved in between {percent(snapshot.changed_share)} are put back, and "
            f"{percent(max(edq, 0))} of the way is kept (EDQ {number(edq)})."
        ),
        locations=locations(
            [snapshot.cast or snapshot.saved or snapshot.place], [snapshot.place, snapshot.saved]
        ),
        measured={
            "edq": edq,
            "put_back_share": snapshot.changed_share,
            "lost_movement": snapshot.relative_error,
            "regained": snapshot.regained,
            "format": snapshot.format,
            "times": snapshot.times,
        },
        prescriptions=ranked(
            [
                (
                    "full-checkpoint",
                    f"keep what training goes on from in {snapshot.trained}, and round a copy of it where "
                    "room or bandwidth asks for that",
                )
            ]
        ),
    )


def _severity(snapshot: Snapshot) -> Severity | None:
    """Return how grave it is; None where the movement arrives, a finer copy is kept, or that is not known."""
    fmt, edq = format_named(snapshot.format), snapshot.edq
    if snapshot.kind != "rounded" or fmt is None or edq is None or not edq < WARNING_EDQ:
        return None
    is_habit = snapshot.times >= max(MIN_TRIPS, TRIPS_EACH * snapshot.others)
    is_kept = snapshot.regained is None or snapshot.regained >= KEPT
    # less than one rounding changes is what any copy in this format costs
    if not is_habit or is_kept or not snapshot.relative_error > fmt.eps / 2:
        return None
    return "error" if edq < ERROR_EDQ else "warning"
