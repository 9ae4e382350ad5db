"""Where digits are lost: differences that keep few of them, and phases that are off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from precdoctor.observe.frames import Spot
from precdoctor.observe.shadow.look import Look
from precdoctor.observe.shadow.sites import (
    HURT,
    NATS,
    SWAMPED,
    CancellationSite,
    LossySumSite,
    NonFiniteSite,
    PhaseSite,
    Site,
)
from precdoctor.observe.shadow.table import Origin, Shadow, ShadowTable, TooLarge, actual

#: share of elements off by half their value from which a result is hurt
HURT_SHARE = 0.3
#: error of an element, over its value, from which it counts in that share
_HALF = 0.5
#: largest error of the arguments of a difference that is to blame itself, and how much smaller it must be
_SOUND, _AMPLIFIED = 0.1, 8.0
#: size of an element over that of the largest from which it matters that it is wrong
_SLIGHT = 1e-6
#: exact result over the largest argument below which it is zero but for the rounding of float64
_NOTHING = 1e-14
#: error of a result below which it is not looked at closer
_BEYOND_ROUNDING = 1e-5
#: error of an argument of sin or cos that counts, radians
_TURNED = 0.5
#: error of the exponential of a difference from which the ratio that it is is off
_RATIO = 0.02
#: logarithm of a probability, below the largest of its row, from which on it is as good as zero: 2e-22
_NEGLIGIBLE = 50.0
NARROW = (torch.float16, torch.bfloat16)


class Errors(NamedTuple):
    """The error of a tensor."""

    #: norms of the error and of the exact values, over the elements finite in both
    error: float
    size: float
    #: all elements are finite, in both
    finite: bool

    @property
    def relative(self) -> float:
        """Return the error over the exact value."""
        if self.size > 0:
            return self.error / self.size
        return math.inf if self.error > 0 else 0.0


def measured(tensor: Tensor, exact: Tensor) -> Errors:
    """Return the error of a tensor beside its exact values."""
    off = tensor.detach().double() - exact
    error, size = torch.stack((torch.linalg.vector_norm(off), torch.linalg.vector_norm(exact))).tolist()
    if math.isfinite(error) and math.isfinite(size):
        return Errors(error, size, True)
    both = torch.isfinite(tensor) & torch.isfinite(exact)
    off, exact = torch.where(both, off, 0), torch.where(both, exact, 0)
    error, size = torch.stack((torch.linalg.vector_norm(off), torch.linalg.vector_norm(exact))).tolist()
    return Errors(error, size, False)


def share_off(tensor: Tensor, exact: Tensor, least: float = 0.0) -> float:
    """Return the share of the elements that are off by half their value, if that is above ``least``."""
    size = exact.abs()
    off = (tensor.detach().double() - exact).abs()
    return float(((off > _HALF * size) & (size > least)).double().mean())


def hurt_of(site: Site, tensor: Tensor, exact: Tensor, relative: float) -> float | None:
    """Return by how much a tensor is hurt, its error or a share of its elements; None where it is not."""
    if relative > site.least:
        return relative
    share = share_off(tensor, exact)
    return share if share > HURT_SHARE else None


def _has_wrong_elements(tensor: Tensor, exact: Tensor) -> bool:
    if not exact.numel():
        return False
    largest = float(torch.where(torch.isfinite(exact), exact.abs(), 0.0).max())
    return share_off(tensor, exact, _SLIGHT * largest) > 0


def nats_off(tensor: Tensor, exact: Tensor) -> float:
    """Return the median error of logarithms, of those that are not negligible beside others of their row."""
    if not tensor.numel():
        return 0.0
    known = torch.isfinite(exact) & torch.isfinite(tensor)
    kept = torch.where(known, exact, -math.inf)
    largest = kept.amax(-1, keepdim=True) if exact.ndim else kept
    counts = known & (exact >= largest - _NEGLIGIBLE)
    off = (tensor.detach().double() - exact).abs()[counts]
    return float(off.median()) if off.numel() else 0.0


class DigitWatch:
    """Finds differences that lose digits; knows whose damage a tensor carries."""

    def __init__(self, table: ShadowTable) -> None:
        self._table = table
        self.cancellations: dict[tuple[Spot | None, str, bool], CancellationSite] = {}
        self.lossy_sums: dict[tuple[Spot | None, str], LossySumSite] = {}
        self.phases: dict[tuple[Spot | None, str], PhaseSite] = {}
        #: a difference has lost its digits although no value was below float32
        self.cancels_wide = False

    @property
    def sites(self) -> list[Site]:
        """Return all sites."""
        return [*self.cancellations.values(), *self.lossy_sums.values(), *self.phases.values()]

    def inherited(
        self,
        look: Look,
        shadows: Sequence[Shadow],
        other: Site | None,
        out: Tensor,
        exact: Tensor,
        rel: float,
    ) -> tuple[Site | None, bool]:
        """Return the damage that a result still carries, and whether it was magnified.

        What the forward pass has lost is judged by where it gets to there, not by torch's derivatives.
        """
        carriers = sorted((s for s in shadows if s.damage is not None), key=lambda s: -s.error)
        if look.kind.name == "exp" and rel > _RATIO:  # the difference is that of two logarithms
            for lost in (s.damage for s in carriers):
                if isinstance(lost, CancellationSite):
                    lost.ratio = True
        site = carriers[0].damage if carriers else other
        if site is None or (look.is_derivative and not site.backward):
            return None, False
        hurt = hurt_of(site, out, exact, rel)
        if hurt is None:
            self._complemented(look, carriers)
            # 1 / inf is 0, beside what is not much larger; times what was too large it is all that matters
            latent = isinstance(site, NonFiniteSite) and _has_wrong_elements(out, exact)
            return site if latent else None, False
        site.carried(look.spot, hurt)
        magnified = any(s.magnified for s in carriers)
        if magnified:
            site.reach("logarithm", look.number, look.spot, hurt)
        return site, magnified or look.kind.magnifies or self._divides(look, carriers)

    @staticmethod
    def _complemented(look: Look, carriers: Sequence[Shadow]) -> None:
        """Take note of 1 - a / b: a score near 1, where what is said is how far from 1."""
        carrier = next((s for s in carriers if s.magnified and s.error > HURT), None)
        if carrier is None or carrier.damage is None or look.is_graded or len(look.inputs) != 1:
            return
        if look.kind.name in ("rsub", "sub", "add"):
            carrier.damage.reach("logarithm", look.number, look.spot, carrier.error)

    def _divides(self, look: Look, carriers: Sequence[Shadow]) -> bool:
        if look.kind.name != "div" or len(look.inputs) != 2:
            return False
        return self._table.get(look.inputs[1]) in carriers

    def cancelled(self, look: Look, out: Tensor, exact: Tensor, errors: Errors) -> CancellationSite | None:
        """Return the site of a difference that has lost its digits in this operation, None for others."""
        rel = errors.relative
        if rel <= _BEYOND_ROUNDING:
            return None
        share = 0.0
        if rel <= HURT:
            share = share_off(out, exact)
            if share <= HURT_SHARE:
                return None
        before, largest, source = 0.0, 0.0, None
        worst = 0.0
        for tensor in look.inputs:
            if look.is_written(tensor):
                continue
            try:
                value = self._table.value(tensor)
            except TooLarge:
                return None
            found = measured(tensor, value)
            before, largest = max(before, found.relative), max(largest, found.size)
            shadow = self._table.get(tensor)
            if shadow is not None and found.error > worst:
                worst, source = found.error, shadow
        hurt = max(min(rel, 1e6), share)
        if before > min(_SOUND, hurt / _AMPLIFIED) or errors.size <= _NOTHING * largest or not largest:
            return None
        share = share or share_off(out, exact, _NOTHING * largest)
        if share <= HURT_SHARE and rel <= HURT:
            return None
        site = self.site(look, out)
        narrow = source is not None and source.origin is not None and source.origin.format in NARROW
        self.cancels_wide |= not (narrow or any(t.dtype in NARROW for t in (*look.inputs, out)))
        births = [spot for t in look.inputs if (s := self._table.get(t)) for spot in s.births]
        site.see(look, source.origin if source is not None else None, births)
        site.lost(before=before, error=rel, share=share, remaining=errors.size / largest)
        made = {s.made for t in look.inputs if (s := self._table.get(t)) is not None}
        one = made.pop() if len(made) == 1 and len(look.inputs) == 2 else None
        site.repeated |= one is not None and one[0] != look.spot
        return site

    def site(self, look: Look, out: Tensor) -> CancellationSite:
        """Return the site of a difference, made at first sight."""
        key = look.spot, look.kind.name, look.is_derivative
        if key not in self.cancellations:
            form = str(out.dtype).removeprefix("torch.")
            self.cancellations[key] = CancellationSite(
                look.spot, look.kind.name, form, derivative=look.is_derivative
            )
        return self.cancellations[key]

    def accumulated(
        self,
        look: Look,
        out: Tensor,
        exact: Tensor,
        errors: Errors,
        origin: Origin | None,
        *,
        to_log: bool,
    ) -> Site | None:
        """Return the site of a sum that rounds its terms away, one by one on the same line.

        ``to_log``: most of the error is in the logarithm of a sum, which something is added to.
        """
        if origin is None or origin.spot != look.spot or look.spot is None or look.is_derivative:
            return None  # gradients of one line are no sum formed on it
        if out.dtype not in NARROW or not (look.kind.adds or look.adds_up):
            return None
        if look.adds_up:  # terms may cancel: of random ones the root of the sum of their squares is left
            norms = [float(torch.linalg.vector_norm(t.detach().double())) for t in look.terms]
            errors = errors._replace(size=max(errors.size, *norms, 0.0))
        rel = errors.relative
        nats = nats_off(out, exact) if to_log else 0.0
        if rel <= SWAMPED and nats <= NATS:
            return None
        key = look.spot, look.kind.name
        site = self.lossy_sums.get(key)
        if site is None:
            form = str(out.dtype).removeprefix("torch.")
            site = self.lossy_sums[key] = LossySumSite(look.spot, look.kind.name, form)
        site.see(look, origin, ())
        site.error = max(site.error, rel)
        if look.adds_up and _is_widespread(look, out, exact, errors):
            site.indexed_passes.add(look.number)
        if nats > NATS:
            site.nats = max(site.nats, nats)
            site.nats_passes.add(look.number)
        return site

    def phase(self, look: Look) -> None:
        """Look at the argument of a sine or cosine."""
        argument = look.inputs[0] if look.inputs else None
        shadow = self._table.get(argument) if argument is not None else None
        if argument is None or shadow is None or look.written:
            return
        off = (actual(argument) - shadow.view(argument)).abs()
        off = off[torch.isfinite(off)]
        share = float((off > _TURNED).double().mean()) if off.numel() else 0.0
        if share == 0.0:
            return
        key = look.spot, look.kind.name
        site = self.phases.get(key)
        if site is None:
            form = str(argument.dtype).removeprefix("torch.")
            site = self.phases[key] = PhaseSite(look.spot, look.kind.name, form)
        site.see(look, shadow.origin, shadow.births)
        site.share = max(site.share, share)
        site.error_rad = max(site.error_rad, float(off.max()))
        site.largest = max(site.largest, float(argument.detach().double().abs().max()))


def _is_widespread(look: Look, out: Tensor, exact: Tensor, errors: Errors) -> bool:
    """Tell whether half of the relative error of a sum by index is left without its worst place.

    What is to be thrown away is often added to one place of its own, which is looked at by nobody.
    """
    place = look.operation.args[1]
    dim = place if isinstance(place, int) else 0
    other = [d for d in range(out.ndim) if d != dim % out.ndim]
    off, size = (out.detach().double() - exact).square(), exact.square()
    if other:
        off, size = off.sum(other), size.sum(other)
    worst = int(off.argmax())
    rest = Errors(float(off.sum() - off[worst]), float(size.sum() - size[worst]), errors.finite)
    return math.sqrt(rest.relative) > errors.relative / 2
