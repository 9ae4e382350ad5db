"""How much of the descent that was meant arrives in the weights: the measure behind PD101 to PD105."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from precdoctor.evidence import Evidence, Histogram, Run
from precdoctor.formats import half_ulp, headroom_bits
from precdoctor.rules.reading import MIN_STEPS, Stepped, gets_gradient, merged, stepped

#: EDQ below which a parameter counts as frozen: a frozen one measures 0.000, one that drifts 0.23
FROZEN_EDQ = 0.05
#: share of the updates lost, or of the elements that never moved, from which "frozen" is said: one moving
#: element must not hide a stuck tensor, nor a few strays unfreeze it
FROZEN_LOST_SHARE, FROZEN_STUCK_SHARE = 0.99, 0.9
#: intended updates (element x step) from which a parameter is called frozen: a scalar over 20 steps
MIN_INTENDED = 20
#: the same of a parameter that has not moved from the first step to the last, of at least that many
MIN_INTENDED_STILL = 8
#: intended update over weight (rms) per step from which a loss matters: 1 % of the weight in 10,000 steps
MIN_RELATIVE_RMS = 1e-6
#: observed steps without any motion that are evidence where the optimizer could not be replayed
MIN_STILL_STEPS = 20
#: share of stored results that the replay may miss by more than its tolerance; beyond, it is not believed
MAX_MISMATCH_SHARE = 0.05
#: how far a learning rate may still rise that was rising when the watch ended, its schedule unknown:
#: 50 steps seen of a warm-up of 1,000
UNKNOWN_RISE = 20.0
#: update in ulp from which rounding it changes nothing that matters: 1/64 at most
_MANY_ULPS = 32.0
#: distance from 1 at which EDQ counts as restored: below 0.9 is PD102 again
RESTORED_WITHIN = 0.1
#: step in which the scale that restores it is looked for, bits
_SCAN_BITS = 1 / 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """EDQ of one parameter as it is to be judged."""

    edq: float
    #: 95 % confidence interval; equal to ``edq`` where there is none
    low: float
    high: float
    #: expected EDQ once the learning rate has risen to its peak; equal to ``edq`` where it does not rise
    outlook: float
    #: "replay": window 1 against the replayed updates; "net": stored travel, for optimizers that carry
    basis: Literal["replay", "net"]

    @property
    def best(self) -> float:
        """Return the most favourable reading: what must still be low for an illness to be claimed."""
        return max(self.high, self.outlook)


def quality(item: Stepped, run: Run) -> Quality | None:
    """Return how much of the intended descent arrives; None where that can't be told.

    An optimizer that brings small updates through in the long run (Kahan, own masters, stochastic
    rounding) is judged by its net travel, and not at all when it rounds inside: its intended updates
    are then noise around the true ones.
    """
    updates = item.updates
    if updates.replay == "none":
        return None
    if item.preserves:
        net = updates.net_edq
        if net is None or rounds_inside(item):
            return None
        return Quality(edq=net, low=net, high=net, outlook=net, basis="net")
    if not is_replayed(item):
        return None
    for window in updates.edq:
        if window.window == 1 and math.isfinite(window.edq):
            rise = expected_rise(item, run)
            outlook = max(window.edq, edq_at(updates.headroom_energy, rise)) if rise > 1 else window.edq
            return Quality(edq=window.edq, low=window.low, high=window.high, outlook=outlook, basis="replay")
    return None


def rounds_inside(item: Stepped) -> bool:
    """Tell whether the replayed updates are themselves rounded to the weight's format."""
    return item.bench is not None and item.bench.rounds_inside


def is_replayed(item: Stepped) -> bool:
    """Tell whether the replay can be believed for an optimizer that does not preserve small updates."""
    if item.updates.replay == "none" or rounds_inside(item):
        return False
    return item.writes_nothing or item.updates.mismatch_share <= MAX_MISMATCH_SHARE


def is_frozen(item: Stepped, run: Run) -> bool:
    """Tell whether updates of a matter-of-fact size are intended and none or almost none arrives.

    Replayed updates are asked about in formats below float32 only: elsewhere what rounds away is too
    small to matter.
    """
    found, updates = quality(item, run), item.updates
    if found is None:
        return is_still(item, run)
    if not item.is_low:
        return False
    lost = updates.lost_share > FROZEN_LOST_SHARE or updates.never_moved_share > FROZEN_STUCK_SHARE
    weight, steps = item.parameter.weight, item.optimizer.steps
    is_where_it_was = weight is not None and weight.moved_share == 0 and steps >= MIN_INTENDED
    least = MIN_INTENDED_STILL if is_where_it_was else MIN_INTENDED
    return lost and found.best < FROZEN_EDQ and is_meant(item, run, least)


def is_meant(item: Stepped, run: Run, least: int) -> bool:
    """Tell whether enough updates, large enough to matter, were intended."""
    updates = item.updates
    if updates.intended < least or item.optimizer.observed < MIN_STEPS:
        return False
    return updates.relative_rms * expected_rise(item, run) >= MIN_RELATIVE_RMS


def is_still(item: Stepped, run: Run) -> bool:
    """Tell whether nothing moved though gradients flowed: the evidence left where no replay is.

    Asked of any format: a float32 weight too moves within so many steps.
    """
    if item.preserves or is_replayed(item) or item.parameter.weight is None:
        return False
    steps = MIN_STILL_STEPS if not item.is_low else MIN_STEPS
    return (
        item.parameter.weight.moved_share == 0
        and gets_gradient(item.parameter)
        and item.optimizer.observed >= steps
        and (item.group.lr_max or 0.0) > 0
        and expected_rise(item, run) <= 1
    )


def frozen_parameters(evidence: Evidence) -> list[Stepped]:
    """Return the frozen parameters, less those whose optimizer writes nothing at all."""
    return [item for item in stepped(evidence) if not item.writes_nothing and is_frozen(item, evidence.run)]


def expected_rise(item: Stepped, run: Run) -> float:
    """Return by what factor the learning rate will still rise above the largest one seen; 1 if not.

    Only a run that was cut short has a future. Without a scheduler to ask, a rate that was still
    rising may rise further.
    """
    group = item.group
    if run.ended not in ("stopped", "watched") or not group.lr_max:
        return 1.0
    if group.lr_future:
        return max(1.0, max(lr for _, lr in group.lr_future) / group.lr_max)
    rising = group.lr_first is not None and group.lr_last is not None and group.lr_first < group.lr_last
    return UNKNOWN_RISE if rising and group.lr_last == group.lr_max else 1.0


def edq_at(energy: Histogram, scale: float) -> float:
    """Return the EDQ expected if all updates were ``scale`` times as large; 1 for an empty histogram.

    ``energy`` holds squared intended updates by headroom. A weight lies on its format's grid, so an
    update of h bits of headroom, 2**(h-1) ulp, is stored as that many ulp rounded to a whole number.
    """
    if energy.total <= 0 or scale <= 0:
        return 1.0
    shift, arrived = math.log2(scale), 0.0
    for index, weight in enumerate(energy.counts):
        if weight > 0:
            left, right = (energy.low + edge * energy.width + shift for edge in (index, index + 1))
            arrived += weight * _arriving(2.0 ** (left - 1), 2.0 ** (right - 1))
    return arrived / energy.total


def _arriving(least: float, most: float) -> float:
    """Return the mean of round(x) / x over x, in ulp, spread evenly by its logarithm from least to most."""
    if least > _MANY_ULPS:
        return 1.0
    # round(x) is k from k - 1/2 to k + 1/2; the integral of k / x dx / x is k / left - k / right
    total = 0.0
    for k in range(math.floor(least + 0.5), math.floor(most + 0.5) + 1):
        left, right = max(least, k - 0.5), min(most, k + 0.5)
        total += k * (1 / left - 1 / right)
    return total / math.log(most / least)


def restoring_factor(energy: Histogram) -> float | None:
    """Return the smallest factor on all updates from which on the expected EDQ is within 0.1 of 1.

    Just above half an ulp an update is stored twice as large as it was meant, so EDQ swings around 1
    before it settles: looked for is the last crossing, from above. 1 where nothing has to change; None
    for an empty histogram.
    """
    if energy.total <= 0:
        return None
    # from 32 ulp on even one bin alone is right to 1/64
    high = max(6 - energy.low, 0.0)
    low = high
    while low > 0 and _is_restored(energy, low):
        high, low = low, low - _SCAN_BITS
    if low <= 0 and _is_restored(energy, 0.0):
        return 1.0
    low = max(low, 0.0)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if _is_restored(energy, middle) else (middle, high)
    factor: float = 2.0**high
    return factor


def _is_restored(energy: Histogram, bits: float) -> bool:
    return abs(1 - edq_at(energy, 2.0**bits)) <= RESTORED_WITHIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """One typical element's numbers: why its update does, or does not, arrive."""

    #: magnitude of the weight, of its intended update, and half an ulp towards and away from zero
    weight: float
    intended: float
    half_ulp_down: float
    half_ulp_up: float
    #: the update makes the magnitude grow; None where the direction is not known
    grows: bool | None
    #: log2(intended / half_ulp) in the update's direction
    headroom_bits: float


def arithmetic(items: Sequence[Stepped]) -> Arithmetic | None:
    """Return the numbers of a typical element: an observed one whose headroom is near the median."""
    bits = merged(i.updates.headroom_bits for i in items).quantile(0.5)
    best: tuple[float, Stepped, float] | None = None
    for item in items:
        example = item.updates.example
        if example is None or not example.intended or not math.isfinite(example.weight):
            continue
        own = headroom_bits(item.format, example.weight, example.intended)
        if not math.isfinite(own):
            continue
        far = abs(own - bits) if bits is not None else 0.0
        if best is None or far < best[0]:
            best = (far, item, own)
    if best is not None:
        _, item, own = best
        example = item.updates.example
        assert example is not None
        weight, intended = abs(example.weight), abs(example.intended)
        grows: bool | None = (example.weight > 0) == (example.intended > 0)
    else:
        known = [i for i in items if i.parameter.weight is not None]
        if bits is None or not known or known[0].parameter.weight is None:
            return None
        item, own, grows = known[0], bits, None
        weight = known[0].parameter.weight.abs_median
        intended = half_ulp(item.format, weight, 1.0) * 2.0**bits
    return Arithmetic(
        weight=weight,
        intended=intended,
        half_ulp_down=half_ulp(item.format, weight, -1.0),
        half_ulp_up=half_ulp(item.format, weight, 1.0),
        grows=grows,
        headroom_bits=own,
    )
