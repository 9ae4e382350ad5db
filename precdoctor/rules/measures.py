"""The numbers that prove a loss of updates, for the findings of PD101, PD102, PD103 and PD105."""

from __future__ import annotations

from collections.abc import Sequence

from precdoctor.evidence import Evidence
from precdoctor.rules.descent import Quality, arithmetic, quality
from precdoctor.rules.reading import Stepped, merged
from precdoctor.rules.wording import number


def worst(evidence: Evidence, items: Sequence[Stepped]) -> tuple[Stepped, Quality | None]:
    """Return the parameter with the lowest EDQ, and its quality."""
    rated = [(item, quality(item, evidence.run)) for item in items]
    return min(rated, key=lambda pair: pair[1].edq if pair[1] is not None else 2.0)


def measured(evidence: Evidence, items: Sequence[Stepped]) -> dict[str, float | int | str | None]:
    """Return numbers by name: EDQ of the worst, the loss of all, a typical element's arithmetic."""
    item, found = worst(evidence, items)
    intended = sum(i.updates.intended for i in items)
    values: dict[str, float | int | str | None] = {
        "parameters": len(items),
        "elements": sum(i.parameter.numel for i in items),
        "format": item.format.name,
        "evidence": found.basis if found is not None else "motion",
    }
    if found is not None:
        values |= {"edq": found.edq, "edq_low": found.low, "edq_high": found.high}
        values["worst_parameter"] = item.parameter.name
    if intended:
        values["intended_updates"] = intended
        values["lost_share"] = sum(i.updates.intended * i.updates.lost_share for i in items) / intended
        values["never_moved_share"] = (
            sum(i.updates.intended * i.updates.never_moved_share for i in items) / intended
        )
        values["headroom_bits_p50"] = merged(i.updates.headroom_bits for i in items).quantile(0.5)
        values["relative_rms"] = item.updates.relative_rms
    numbers = arithmetic(items)
    if numbers is not None:
        values |= {
            "weight": numbers.weight,
            "half_ulp_down": numbers.half_ulp_down,
            "half_ulp_up": numbers.half_ulp_up,
            "intended_update": numbers.intended,
            "bits_short": max(-numbers.headroom_bits, 0.0),
        }
    return values


def sample_note(evidence: Evidence, items: Sequence[Stepped]) -> str:
    """Return a remark that a sample was judged, with the interval of the worst; empty where all were."""
    sampled = [i for i in items if i.parameter.watched < i.parameter.numel]
    if not sampled:
        return ""
    item, found = worst(evidence, sampled)
    note = f" (judged by a sample: {item.parameter.watched:,} of {item.parameter.numel:,} elements"
    if len(sampled) > 1:
        note += f" of {item.parameter.name}"
    if found is not None and found.low < found.high:
        note += f", EDQ {number(found.edq)}, 95 % interval {number(found.low)} .. {number(found.high)}"
    return note + ")"
