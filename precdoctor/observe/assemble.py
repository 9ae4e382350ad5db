"""From the ledgers and identities of a run to `Evidence`: the only place where tensors become numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from precdoctor.evidence import (
    Cast,
    Counter,
    Example,
    Gradient,
    Group,
    Optimizer,
    Parameter,
    Place,
    State,
    Updates,
    Weight,
)
from precdoctor.observe.frames import Spot
from precdoctor.observe.registry import Identity, OptimizerIdentity, Registry
from precdoctor.observe.steps.lane import Lane
from precdoctor.observe.steps.monitor import Record, StepMonitor

#: share of stored results that may depart from the replay before the replay is given up as wrong
_MISMATCH = 0.2


def parameters(monitor: StepMonitor, registry: Registry) -> tuple[Parameter, ...]:
    """Return what was seen of every parameter: those that optimizers step, and others that got gradients."""
    found: list[Parameter] = []
    seen: set[int] = set()
    for record, group, lane, index, identity in _best_lanes(monitor, registry):
        seen.add(id(identity))
        found.append(_stepped(record, group, lane, index, identity))
    roots = _optimizer_roots(registry, seen)
    # a model whose methods are called instead of itself tells nothing about what runs inside it
    called = roots & set(registry.ran or ())
    constructed = [o.constructed_at for o in registry.optimizers.values() if o.constructed_at is not None]
    for identity in registry.identities:
        concerned = identity.gradient_present or identity.copy_of_master
        if id(identity) not in seen and identity.trainable and concerned:
            found.append(_unstepped(identity, roots, called, min(constructed, default=None)))
    return tuple(found)


def optimizers(
    monitor: StepMonitor,
    registry: Registry,
    future: Mapping[int, Mapping[int, tuple[tuple[int, float], ...]]],
) -> tuple[Optimizer, ...]:
    """Return what was seen of every optimizer that stepped."""
    found = []
    for record in monitor.records:
        known = registry.optimizers.get(record.index, OptimizerIdentity())
        groups = []
        for index, settings in sorted(record.groups.items()):
            groups.append(
                Group(
                    **settings,
                    place=known.group_places.get(index) or known.place,
                    lr_future=future.get(record.index, {}).get(index, ()),
                )
            )
        stale = []
        for group, (_, lanes) in record.lanes.items():
            for lane in lanes:
                for position, reference in enumerate(lane.parameters):
                    identity = registry.find(reference)
                    absent = lane.gradients.present[position] == 0 and lane.gradients.absent[position] > 0
                    if (
                        identity is not None
                        and identity.owner is None
                        and identity.master_of is None
                        and absent
                    ):
                        stale.append(_name(identity, record, group, lane, position))
        found.append(
            Optimizer(
                type=record.type,
                steps=record.steps,
                observed=record.observed,
                groups=tuple(groups),
                benches=tuple(record.benches.values()),
                stale=tuple(stale),
                place=known.place,
            )
        )
    return tuple(found)


def states(monitor: StepMonitor, registry: Registry) -> tuple[State, ...]:
    """Return what was seen of optimizer state in formats below float32."""
    found = []
    for record, group, lane, index, identity in _best_lanes(monitor, registry):
        segment = lane.ledger.segments[index]
        part = slice(segment.start, segment.stop)
        for key, ledger in lane.states.items():
            intended = float(ledger.intended[part].sum())
            if not intended and not float(ledger.driven[part].sum()):
                continue
            moment, (never, largest) = ledger.moment(), ledger.never(part)
            role = "other" if moment is None else ("first moment", "second moment")[moment[0] - 1]
            found.append(
                State(
                    parameter=_name(identity, record, group, lane, index),
                    key=key,
                    role=role,
                    format=ledger.fmt.name,
                    beta=None if moment is None else moment[1],
                    edq=_ratio(float(ledger.au[part].sum()), float(ledger.uu[part].sum())),
                    edq_down=_ratio(float(ledger.down_au[part].sum()), float(ledger.down_uu[part].sum())),
                    lost_share=float(ledger.lost[part].sum()) / max(intended, 1.0),
                    flushed_share=float(ledger.flushed[part].sum()) / max(float(ledger.fed[part].sum()), 1.0),
                    never_share=never,
                    never_largest_gradient=largest,
                    over_exact=ledger.over_exact(part) if role == "second moment" else None,
                    over_gradient=ledger.over_gradient(part) if role == "second moment" else None,
                )
            )
    return tuple(found)


def counters(
    monitor: StepMonitor, registry: Registry, place: Callable[[Spot | None], Place | None]
) -> tuple[Counter, ...]:
    """Return what was read of step counters in formats below float32."""
    found: list[Counter] = []
    for record in monitor.records:
        names = {
            (group, lane.positions[index]): _name(identity, record, group, lane, index)
            for group, (_, lanes) in record.lanes.items()
            for lane in lanes
            for index, reference in enumerate(lane.parameters)
            if (identity := registry.find(reference)) is not None
        }
        found.extend(record.counters.evidence(record.index, names, place))
    return tuple(found)


def _best_lanes(monitor: StepMonitor, registry: Registry) -> list[tuple[Record, int, Lane, int, Identity]]:
    """Return (record, group, lane, position, identity), the most observed lane of each parameter."""
    best: dict[int, tuple[Record, int, Lane, int, Identity]] = {}
    for record in monitor.records:
        for group, (_, lanes) in record.lanes.items():
            for lane in lanes:
                for index, reference in enumerate(lane.parameters):
                    identity = registry.find(reference)
                    if identity is None or lane.ledger.steps == 0:
                        continue
                    known = best.get(id(identity))
                    if known is None or known[2].ledger.steps <= lane.ledger.steps:
                        best[id(identity)] = (record, group, lane, index, identity)
    return list(best.values())


def _name(identity: Identity, record: Record, group: int, lane: Lane, index: int) -> str:
    if identity.owner is not None:
        return identity.owner.name
    if identity.master_of is not None:
        return f"{identity.master_of} (master)"
    kind = record.type.rpartition(".")[2]
    return f"{kind}.group{group}[{lane.positions[index]}]"


def _stepped(
    record: Record,
    group: int,
    lane: Lane,
    index: int,
    identity: Identity,
) -> Parameter:
    ledger, gradients = lane.ledger, lane.gradients
    segment = ledger.segments[index]
    part = slice(segment.start, segment.stop)
    intended = int(ledger.intended[part].sum())
    missed = float(ledger.missed[part].sum()) / max(intended, 1)
    replay, why_not = lane.replay, lane.why_not
    bench = record.benches.get((group, ledger.fmt.name))
    writes = bench is None or bench.edq_large is None or bench.edq_large >= 0.5
    if replay != "none" and bench is not None and bench.rounds_inside:
        replay, why_not = "none", "the optimizer rounds inside its step, its exact update does not show"
    elif replay != "none" and missed > _MISMATCH and writes:
        replay, why_not = "none", f"the replay misses {missed:.0%} of the stored results"
    settings = record.groups.get(group, {})
    per_step = float(settings.get("lr_last") or 0.0) * float(settings.get("weight_decay") or 0.0)
    updates = Updates(replay=replay, why_not=why_not)
    if replay != "none" and intended:
        u, a = ledger.u[part].double(), ledger.a[part].double()
        uu = float(ledger.uu[part].double().sum())
        # the larger of first and last: one that starts or has arrived at zero is not moving wildly
        ends = [w[part].double().square().sum() for w in (ledger.first, ledger.before) if w is not None]
        ww = max(float(w) for w in ends)
        never = (ledger.intended[part] > 0) & (ledger.lost[part] == ledger.intended[part])
        ups, ups_applied = int(ledger.ups_intended[part].sum()), int(ledger.ups_applied[part].sum())
        lost = int(ledger.lost[part].sum())
        rewritten_share, narrowed_share, rewritten = ledger.kept(index)
        updates = Updates(
            replay=replay,
            intended=intended,
            lost_share=lost / intended,
            never_moved_share=float(never.sum()) / float((ledger.intended[part] > 0).sum()),
            edq=ledger.edq(index),
            net_edq=ledger.net_edq(index),
            headroom_bits=ledger.histogram(index, "count"),
            headroom_energy=ledger.histogram(index, "energy"),
            headroom_per_lr=ledger.histogram(index, "energy per lr"),
            ups_intended=ups,
            downs_intended=intended - ups,
            ups_applied=ups_applied,
            downs_applied=max(intended - lost - ups_applied, 0),
            drift_intended=float(u.mean()),
            drift_applied=float(a.mean()),
            relative_rms=math.sqrt(uu / max(ledger.clock, 1) / ww) if ww > 0 else 0.0,
            mismatch_share=missed,
            rewritten_share=rewritten_share,
            narrowed_share=narrowed_share,
            rewritten=rewritten,
            decay=ledger.weight_decay(index, record.steps, per_step),
            example=_example(lane, index),
            timeline=ledger.stretches(index),
        )
    return Parameter(
        name=_name(identity, record, group, lane, index),
        format=ledger.fmt.name,
        shape=tuple(lane.shapes[index]),
        watched=lane.watches[index].count,
        module=identity.owner.module if identity.owner is not None else "",
        trainable=identity.trainable,
        used=True if gradients.present[index] else identity.used,
        optimizer=record.index,
        group=group,
        master_of=identity.master_of,
        created=identity.created,
        cast=identity.cast,
        weight=_weight(
            None if ledger.first is None else ledger.first[part],
            ledger.after[part] if identity.now is None else identity.now,
        ),
        gradient=Gradient(
            format=lane.gradient_format if gradients.present[index] else "",
            present=gradients.present[index],
            absent=gradients.absent[index],
            all_zero=int(gradients.all_zero[index]),
            binades=gradients.binades(index) if gradients.present[index] else None,
        ),
        updates=updates,
    )


def _unstepped(identity: Identity, roots: set[int], called: set[int], constructed: int | None) -> Parameter:
    after = None
    if constructed is not None and identity.created_at is not None:
        after = identity.created_at > constructed
    return Parameter(
        name=identity.owner.name if identity.owner is not None else "?",
        format=identity.format,
        shape=identity.shape,
        watched=identity.watch.count if identity.watch is not None else 0,
        module=identity.owner.module if identity.owner is not None else "",
        trainable=identity.trainable,
        used=True if identity.gradient_present else identity.used,
        used_by_model=None if identity.callers is None or not called else bool(called & identity.callers),
        copy_of_master=identity.copy_of_master,
        created_after_optimizer=after,
        in_model=identity.owner is not None and (not roots or identity.owner.root in roots),
        created=identity.created,
        replaced=identity.replaced,
        cast=identity.cast if isinstance(identity.cast, Cast) else None,
        weight=_weight(identity.first, identity.last),
        gradient=Gradient(
            format=identity.gradient,
            present=identity.gradient_present,
            absent=identity.gradient_absent,
            all_zero=identity.gradient_zero,
        ),
    )


def _optimizer_roots(registry: Registry, stepped: set[int]) -> set[int]:
    return {i.owner.root for i in registry.identities if id(i) in stepped and i.owner is not None}


def _weight(first: torch.Tensor | None, last: torch.Tensor | None) -> Weight | None:
    if first is None or last is None:
        return None
    then, now = first.double(), last.to(first.device).double()
    finite = now[torch.isfinite(now)]
    size = finite.abs() if len(finite) else torch.zeros(1, dtype=torch.float64)
    mantissa, _ = torch.frexp(size)
    # NaN differs from itself: an element that stays NaN has not moved
    same = (then == now) | (torch.isnan(then) & torch.isnan(now))
    return Weight(
        abs_median=float(size.median()),
        abs_min=float(size.min()),
        abs_max=float(size.max()),
        mean_first=float(torch.nan_to_num(then).mean()),
        mean_last=float(finite.mean()) if len(finite) else 0.0,
        moved_share=1.0 - float(same.double().mean()),
        power_of_two_share=float((mantissa == 0.5).double().mean()),
        non_finite=len(now) - len(finite),
    )


def _example(lane: Lane, index: int) -> Example | None:
    """Return the element whose last intended update is the median one of those lost, or of all."""
    ledger = lane.ledger
    segment = ledger.segments[index]
    part = slice(segment.start, segment.stop)
    u, before = ledger.last_u[part], ledger.before[part]
    applied = (ledger.after - ledger.before)[part]
    meant = u != 0
    lost = meant & (applied == 0)
    pool = lost if bool(lost.any()) else meant
    candidates = torch.nonzero(pool).reshape(-1)
    if not len(candidates):
        return None
    order = torch.argsort(u[candidates].abs())
    chosen = int(candidates[order[len(order) // 2]])
    return Example(
        index=lane.watches[index].position(chosen),
        weight=float(before[chosen]),
        intended=float(u[chosen]),
        applied=float(applied[chosen]),
    )


def _ratio(au: float, uu: float) -> float:
    return au / uu if uu > 0 else 1.0
