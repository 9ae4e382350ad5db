"""The part of PD502 that is seen beside float64: arguments of sin and cos that are off by much of a turn."""

from __future__ import annotations

from precdoctor.evidence import Evidence, Phase
from precdoctor.rules.exactness import (
    MIN_PASSES,
    exactness,
    line_of,
    site_locations,
    subjects,
    where,
)
from precdoctor.rules.finding import Finding
from precdoctor.rules.lost_integers import decisive
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.wording import at, number, percent

#: share of the arguments that are off by more than half a radian (measured: 0 where they are formed in
#: float32; 0.06 for positions or timesteps in bfloat16)
MIN_SHARE = 0.02


def wrong_phases(evidence: Evidence, rule: str, name: str) -> list[Finding]:
    """Return a finding per line that brought the error in, but for those whose integers tell it already."""
    told = set[object]()
    for item in filter(decisive, evidence.integers):
        told.update(line_of(place) for place in (item.place, *(use.place for use in item.uses)) if place)
    sites: dict[object, list[Phase]] = {}
    for site in exactness(evidence).phases:
        often = site.passes >= min(MIN_PASSES, exactness(evidence).passes)
        if site.share >= MIN_SHARE and often and told.isdisjoint((line_of(site.cause), line_of(site.place))):
            sites.setdefault(site.cause or site.place, []).append(site)
    return [_finding(members, rule, name) for members in sites.values()]


def _finding(sites: list[Phase], rule: str, name: str) -> Finding:
    worst = max(sites, key=lambda site: site.share)
    return Finding(
        rule=rule,
        name=name,
        severity="warning",
        subjects=subjects(sites),
        message=f"{where(worst)}: the arguments of {worst.operation}, up to {number(worst.largest)} rad, are "
        f"off by up to {number(worst.error_rad)} rad, {percent(worst.share)} of them by more than half a "
        f"radian; the error comes in{at(worst.cause)}.",
        locations=site_locations(sites),
        measured={
            "share": worst.share,
            "error_rad": worst.error_rad,
            "largest": worst.largest,
            "passes": worst.passes,
        },
        prescriptions=ranked([("float32-op", "compute frequencies and phases in float32")]),
    )
