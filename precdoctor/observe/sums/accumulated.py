"""From the slots that `AccumulationWatch` has followed to evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from precdoctor.evidence import Accumulation, Place
from precdoctor.observe.frames import Spot
from precdoctor.observe.lineage.made import Root
from precdoctor.observe.sums.sites import Ended, Site
from precdoctor.observe.sums.slots import Slot, worse

_Placer = Callable[[Spot | None], Place | None]
_Z95 = 1.96
#: tensors are told apart from others of their line by the upper end of their EDQ, or the share of elements
#: that stood still for so many updates: one that follows would hide one that does not
_APART, _STILL, _UPDATES = 0.5, 0.8, 8


def accumulations(
    site: Site, slots: Sequence[Slot], names: Mapping[Root, str], place: _Placer, steps: int
) -> list[Accumulation]:
    """Return what a line did to the slots that live and to those that are gone.

    ``names`` are those of the parameters whose gradients are summed; ``steps`` is the number made in all.
    """
    found = [ended for slot in slots if (ended := site.final(slot, steps)) is not None]
    groups: dict[tuple[Any, ...], list[Ended]] = {}
    for ended in (*site.ended, *found):
        if float(ended.totals[6]):
            still = ended.commits >= _UPDATES and float(ended.still[1] / ended.still[0]) > _STILL
            apart = ended.kind in ("average", "merge", "update") and (still or _edq(ended.totals)[2] < _APART)
            groups.setdefault((ended.kind, ended.compensated, apart), []).append(ended)
    return [_record(site, group, names, place, steps) for group in groups.values()]


def _record(
    site: Site, group: list[Ended], names: Mapping[Root, str], place: _Placer, steps: int
) -> Accumulation:
    kind = group[0].kind
    totals = torch.stack([e.totals for e in group]).sum(0)
    edq, low, high = _edq(totals)
    origin = next((e.origin for e in group if e.origin is not None), None)
    values: dict[str, Any] = {
        "kind": kind,
        "compensated": group[0].compensated,
        "format": str(site.dtype).removeprefix("torch."),
        "place": place(site.spot),
        "function": site.spot.function if site.spot is not None else "",
        "origin": place(origin.format) if origin is not None else None,
        "made": place(origin.made) if origin is not None else None,
        "default_format": origin is not None and origin.default,
        "names": tuple(sorted({e.name for e in group if e.name})),
        "trained": all(e.trained for e in group),
        "tensors": max(min(len(group), site.most), 1) if (numel := max(e.numel for e in group)) > 1 else 1,
        "numel": numel,
        "updates": sum(e.commits for e in group),
        "first_step": site.first_step,
        "last_step": site.last_step,
        "edq": edq,
        "edq_low": low,
        "edq_high": high,
        "lost_share": float(totals[5] / totals[6]),
        "still_share": _still(group),
        "read_at": place(site.read_at),
    }
    if kind == "average":
        values |= _average(group)
    elif kind == "gradient":
        values |= _gradients(group, names)
    else:
        values |= _sum(group, site.head, steps)
    return Accumulation(**values)


def _edq(totals: torch.Tensor) -> tuple[float, float, float]:
    """Return the effective descent quality of sums over elements and updates, and its 95 % interval."""
    uu, au, aauu, auuu, uuuu = totals.tolist()[:5]
    if not uu > 0 or not math.isfinite(uu):
        return 1.0, 1.0, 1.0
    edq = au / uu
    spread = _Z95 * math.sqrt(max(aauu - 2 * edq * auuu + edq * edq * uuuu, 0.0)) / uu
    return edq, edq - spread, edq + spread


def _still(group: list[Ended]) -> float:
    """Return the share of the elements of tensors with enough updates that never changed."""
    driven, still = (
        torch.stack([e.still for e in group if e.commits >= _UPDATES] or [torch.zeros(2)]).sum(0).tolist()
    )
    return still / driven if driven else 0.0


def _average(group: list[Ended]) -> dict[str, object]:
    decays = sum(e.decays for e in group)
    values: dict[str, object] = {
        "decay": math.exp(sum(e.log_decay for e in group) / decays),
        "only_scaled": all(bool(e.only_scaled) for e in group),
        "squares": any(e.gradient for e in group) and all(bool(e.never_negative) for e in group),
    }
    ways = [e.way for e in group if e.way is not None]
    if ways:
        far, way, best = torch.stack(ways).sum(0).tolist()
        if way > 0 and math.isfinite(far):
            values |= {"distance": math.sqrt(far / way), "floor": math.sqrt(best / way)}
    return values


def _gradients(group: list[Ended], names: Mapping[Root, str]) -> dict[str, object]:
    """Return the error of sums of gradients, of the median parameter at the step at which it was largest."""
    sums: dict[object, list[torch.Tensor]] = {}
    for ended in group:
        if ended.sums:
            sums.setdefault(ended.owner or ended.name or id(ended), []).extend(ended.sums)
    if not sums:
        return {}
    rows = [torch.stack(found) for found in sums.values()]
    named = {name for owner in sums if isinstance(owner, Root) and (name := names.get(owner))}
    return {
        "error": float(torch.stack([torch.nan_to_num(r)[:, 0].max() for r in rows]).median()),
        "projection": float(torch.stack([torch.nan_to_num(r, 1.0)[:, 1].min() for r in rows]).median()),
        "passes": int(max(float(r[:, 2].max()) for r in rows)),
        "names": tuple(sorted(named | {e.name for e in group if e.name})),
    }


def _sum(group: list[Ended], head: Slot | None, steps: int) -> dict[str, object]:
    states = [e.state for e in group if e.state is not None]
    if head is not None and head.recent and not head.merges:
        states.append(head.after(steps))
    if not states:
        return {}
    worst = states[0]
    for state in states[1:]:
        worst = worse(state, worst)
    _, value, missing, increment, lost, standing, spread = worst.tolist()
    increments = {float(u) for e in group for u in e.increments} - {0.0}
    first = next(iter(increments), 0.0)
    return {
        "value": value,
        "increment": increment,
        "missing": missing,
        "recent_lost_share": lost,
        "standing": standing,
        "spread": spread,
        "counts": len(increments) == 1 and first.is_integer(),
    }
