"""The cures for updates that a weight's format cannot hold, ranked, with reasons computed from the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from precdoctor.evidence import Parameter
from precdoctor.formats import FLOAT32, half_ulp
from precdoctor.rules.descent import RESTORED_WITHIN, Arithmetic, arithmetic, restoring_factor
from precdoctor.rules.finding import Prescription
from precdoctor.rules.reading import Stepped, cause_of_format, merged
from precdoctor.rules.wording import at, count, number, percent, size

#: share of all parameters up to which modules are worth keeping in float32 one by one
ISLAND_SHARE = 0.1
#: share of power-of-two weights from which a larger learning rate lets updates pass in one direction first
EDGE_SHARE = 0.2


Settings = Mapping[str, float | str]


def ranked(reasons: Sequence[tuple[str, str] | tuple[str, str, Settings]]) -> tuple[Prescription, ...]:
    """Return prescriptions for (remedy, why) or (remedy, why, settings), best first."""
    return tuple(
        Prescription(remedy=remedy, rank=rank, why=why, settings=dict(*settings))
        for rank, (remedy, why, *settings) in enumerate(reasons, start=1)
    )


def for_lost_updates(
    items: Sequence[Stepped], *, scaling: bool = True, among: Sequence[Parameter] = ()
) -> tuple[Prescription, ...]:
    """Return the cures for updates that round away in the weights' format.

    ``scaling`` includes larger updates and smaller weights, which never come first: at a binade's edge
    they trade freezing for one-sided drift. ``among`` are the parameters of the run: where the ill ones are
    a few modules of it, those can be kept in float32 alone.
    """
    numbers = arithmetic(items)
    reasons: list[tuple[str, str] | tuple[str, str, Settings]] = [
        ("autocast", _float32_weights(items, numbers)),
        ("master-weights", _masters(items)),
        ("stochastic-rounding", _stochastic(numbers)),
        ("kahan", _kahan(items, numbers)),
    ]
    if is_island(items, among):
        reasons.append(("float32-island", _island(items, among)))
    factor = restoring_factor(merged(i.updates.headroom_energy for i in items)) if scaling else None
    if factor is not None and factor > 1:
        reasons.append(("group-lr", _larger_lr(items, factor), {"factor": factor}))
        reasons.append(("reinit", _smaller_weights(factor, numbers), {"factor": 1 / factor}))
    return ranked(reasons)


def is_island(items: Sequence[Stepped], among: Sequence[Parameter]) -> bool:
    """Tell whether parameters are all those of some modules, and a small share of the run's."""
    names = {i.parameter.name for i in items}
    if not names or not all(i.parameter.module for i in items):
        return False
    prefixes = {name.rpartition(".")[0] for name in names}
    for parameter in among:
        inside = any(parameter.name.startswith(f"{prefix}.") for prefix in prefixes if prefix)
        if parameter.name not in names and inside:
            return False
    own = sum(i.parameter.numel for i in items)
    return "" not in prefixes and own <= ISLAND_SHARE * sum(p.numel for p in among)


def _island(items: Sequence[Stepped], among: Sequence[Parameter]) -> str:
    modules = {i.parameter.name.rpartition(".")[0]: i.parameter.module for i in items}
    kinds = set(modules.values())
    kind = kinds.pop() if len(kinds) == 1 else "module"
    own, everything = sum(i.parameter.numel for i in items), sum(p.numel for p in among)
    which = f"this {kind}" if len(modules) == 1 else f"these {count(len(modules), kind)}"
    extra = size(own * (FLOAT32.bits - items[0].format.bits) / 8)
    return (
        f"keep {which} in float32 (+{extra} of weights): {percent(own / everything)} of the run's "
        f"parameters, the rest stays {items[0].format.name}"
    )


def _float32_weights(items: Sequence[Stepped], numbers: Arithmetic | None) -> str:
    name = items[0].format.name
    numel = sum(i.parameter.numel for i in items)
    extra = size(numel * (FLOAT32.bits - items[0].format.bits) / 8)
    place = cause_of_format(items[0].parameter)
    where = f"leave out the cast to {name}{at(place)}" if place is not None else "keep the weights in float32"
    why = f"{where} and run the forward under torch.autocast: float32 weights (+{extra})"
    if numbers is not None and numbers.weight > 0 and numbers.intended > 0:
        half = half_ulp(FLOAT32, numbers.weight, 1.0)
        why += f" have a half-ulp of {number(half)} at {number(numbers.weight)}, "
        why += f"{math.log2(numbers.intended / half):.1f} bits below this update"
    return why


def _masters(items: Sequence[Stepped]) -> str:
    numel = sum(i.parameter.numel for i in items)
    return (
        f"the optimizer steps float32 copies and the model keeps {items[0].format.name}: "
        f"4 bytes more per parameter, {size(4 * numel)} for these"
    )


def _stochastic(numbers: Arithmetic | None) -> str:
    why = "rounds up or down by chance so that the mean is right, without extra memory"
    if numbers is None or not 0 < numbers.intended < numbers.half_ulp_up:
        return why
    chance = numbers.intended / (2 * numbers.half_ulp_up)
    return f"{why}: each weight would move by one ulp in about one step of {max(1 / chance, 1):.0f}"


def _kahan(items: Sequence[Stepped], numbers: Arithmetic | None) -> str:
    width = items[0].format.bits // 8
    why = f"keeps what rounding loses in a second buffer ({width} more bytes per parameter) until it suffices"
    if numbers is None or not 0 < numbers.intended < numbers.half_ulp_up:
        return why
    steps = math.ceil(numbers.half_ulp_up / numbers.intended)
    return f"{why}, here after at most {steps} steps in one direction"


def _larger_lr(items: Sequence[Stepped], factor: float) -> str:
    why = f"the updates would have to be {number(factor)}x larger"
    lr = items[0].group.lr_max
    if lr:
        why += f" (lr {number(lr)} -> {number(lr * factor)})"
    why += f", the smallest factor from which on the recorded headroom has EDQ within {RESTORED_WITHIN} of 1"
    if _at_edges(items):
        return (
            f"{why}; the weights are powers of two, where decreases pass at half that size: with less than "
            "this they drift towards zero, so not a cure by itself"
        )
    return f"{why}; a decaying schedule would lose them again: not a cure by itself"


def _smaller_weights(factor: float, numbers: Arithmetic | None) -> str:
    target = f" (about {number(numbers.weight / factor)})" if numbers is not None and numbers.weight else ""
    return f"the weights would have to be {number(factor)}x smaller{target}, which changes the model"


def _at_edges(items: Sequence[Stepped]) -> bool:
    return any(
        i.parameter.weight is not None and i.parameter.weight.power_of_two_share >= EDGE_SHARE for i in items
    )
