"""Running sums of intended and applied updates, kept per watched element.

Nothing is reduced while the run goes on: a step adds to a handful of flat buffers, in place, without
waiting for the device. Parameters, confidence intervals and quantiles are read off at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from precdoctor.evidence import Binades, Decay, Histogram, WindowedEdq
from precdoctor.formats import Format
from precdoctor.numerics import BINADE_BINS, LOWEST_BINADE, binade_index, headroom_bits, round_to

#: update sums are compared over these many observed steps (0 = the whole run is kept apart)
WINDOWS = (4, 16)
#: headroom histogram: bits at the left edge, bins per bit, number of bins
_LOW, _PER_BIT, _BINS = -40, 2, 128
#: the same at a learning rate of 1, which most updates exceed by ten bits or more: left edge
_LOW_PER_LR = -24
#: power of time with which what was seen fades: the first half of the run weighs one sixteenth in the end
_FADING = 4
_Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Segment:
    """Where one parameter lies in the flat buffers of its lane."""

    start: int
    stop: int
    #: neighbouring elements that count as one independent observation
    cluster: int


class Ledger:
    """Sums over the observed steps for ``n`` watched elements of several parameters of one format."""

    def __init__(
        self, segments: list[Segment], fmt: Format, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.segments, self.fmt, self.device = segments, fmt, device
        n, count = segments[-1].stop, len(segments)
        self.owner = torch.repeat_interleave(
            torch.arange(count, device=device),
            torch.tensor([s.stop - s.start for s in segments], device=device),
        )

        self._first_bin = self.owner * _BINS

        def zeros(dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(n, dtype=dtype, device=device)

        # sums of u, a, u*u, a*u with u the intended and a the applied update; in those of products a step
        # stands for the ones since the last observed: the first are all observed, later ones now and then
        self.u, self.a, self.uu, self.au = zeros(), zeros(), zeros(), zeros()
        # the open window's sums of u and a, and the sums of their products over closed windows
        self.windows = {w: (zeros(), zeros(), zeros(), zeros()) for w in WINDOWS}
        self.intended, self.lost = zeros(torch.int32), zeros(torch.int32)
        self.ups_intended, self.ups_applied = zeros(torch.int32), zeros(torch.int32)
        self.missed = zeros(torch.int32)
        # what is left of updates when the next step begins: elements written over, those of them by a value
        # other than 0 that 16 bits hold, sums of u*u and a*u
        self.rewritten, self.narrowed = zeros(torch.int32), zeros(torch.int32)
        self.kept_uu, self.kept_au = zeros(), zeros()
        self.rewrites = 0
        self.first: Tensor | None = None
        self.before, self.after, self.last_u, self.last_a = zeros(), zeros(), zeros(), zeros()
        self.headroom = torch.zeros(count * _BINS, dtype=torch.float32, device=device)
        self.energy = torch.zeros(count * _BINS, dtype=torch.float32, device=device)
        self.energy_per_lr = torch.zeros_like(self.energy)
        #: number of the last observed step, and of steps up to it: a new optimizer counts from 1 again
        self._number = self.clock = 0
        self.decay: tuple[Tensor, Tensor] | None = None
        self.last_decay: Tensor | None = None
        #: the part of the first sum of ``decay`` that changed neither weight nor state
        self.decay_gone = torch.empty(0)
        self.steps = 0
        self.timeline: list[tuple[int, Tensor, Tensor]] = []

    def add(
        self,
        before: Tensor,
        after: Tensor,
        intended: Tensor,
        loose: float,
        *,
        lr: float | None = None,
        number: int = 1,
    ) -> None:
        """Add one observed step.

        ``before`` and ``after`` hold the stored values, ``intended`` the meant update (0 where none); all
        of shape (n,). ``loose`` is the share by which a replayed update may differ from the stored one
        beside rounding. ``lr`` is the step's learning rate, where it has one, ``number`` counts steps from 1.
        """
        u = torch.nan_to_num_(intended.to(before.dtype), 0.0, 0.0, 0.0)
        a = torch.nan_to_num_(after - before, 0.0, 0.0, 0.0)
        if self.first is None:
            self.first = before.clone()
        self.before, self.after, self.last_u, self.last_a = before, after, u, a
        meant, moved = u != 0, a != 0
        elapsed, self._number = max(number - self._number, 1), number
        self.clock += elapsed
        self.u += u
        self.a += a
        self.uu.addcmul_(u, u, value=elapsed)
        self.au.addcmul_(a, u, value=elapsed)
        self.intended += meant
        self.lost += meant & ~moved
        self.ups_intended += u > 0
        self.ups_applied += a > 0
        self.steps += 1
        for window, (open_u, open_a, sum_uu, sum_au) in self.windows.items():
            open_u += u
            open_a += a
            if self.steps % window == 0:
                sum_uu.addcmul_(open_u, open_u)
                sum_au.addcmul_(open_a, open_u)
                open_u.zero_()
                open_a.zero_()
        bits = headroom_bits(before, u, self.fmt)
        # off by more than two ulp (four half-ulp, or of the result where it is much larger), and by more
        # than the replay's own tolerance
        allowed = u.abs().mul_(torch.exp2(2.0 - bits).add_(loose + 2 * self.fmt.eps))
        self.missed += (a - u).abs_() > allowed
        bits = torch.nan_to_num(bits, nan=_LOW)
        bins, squares = self._bins(bits, _LOW), (u * u).to(self.energy.dtype)
        self.headroom.index_add_(0, bins, meant.to(self.headroom.dtype))
        self.energy.index_add_(0, bins, squares, alpha=elapsed)
        self._add_per_lr(bits, squares, lr, elapsed)

    def _bins(self, bits: Tensor, low: float) -> Tensor:
        return bits.sub(low).mul_(_PER_BIT).clamp_(0, _BINS - 1).long().add_(self._first_bin)

    def _add_per_lr(self, bits: Tensor, squares: Tensor, lr: float | None, elapsed: int) -> None:
        """Add one step as it would be at a learning rate of 1, and let the older ones fade.

        The first updates of Adam are several times as large as later ones: summed up alike they would hide
        what the run has come to.
        """
        if lr is None or not lr > 0:
            return
        kept = (1 - elapsed / self.clock) ** _FADING
        self.energy_per_lr *= kept
        bins = self._bins(bits, _LOW_PER_LR + math.log2(lr))
        self.energy_per_lr.index_add_(0, bins, squares, alpha=(1 - kept) / lr**2)

    def add_rewrite(self, change: Tensor, now: Tensor) -> None:
        """Add what changed since the last observed step, which was the step before, and is now; (n,)."""
        torch.nan_to_num_(change, 0.0, 0.0, 0.0)
        rewritten = (change != 0) & (self.last_u != 0)
        self.rewritten += rewritten
        self.narrowed += rewritten & (now != 0) & ((now.bfloat16() == now) | (now.half() == now))
        self.kept_uu.addcmul_(self.last_u, self.last_u)
        self.kept_au.addcmul_(self.last_a + change, self.last_u)
        self.rewrites += 1

    def add_decay(self, intended: Tensor, stored: Tensor, carried: Tensor) -> None:
        """Add weight decay's part of one step: as meant, and as it changes the stored result; (n,).

        ``carried``: where it changes what the optimizer keeps of an element.
        """
        if self.decay is None:
            self.decay = (torch.zeros_like(intended), torch.zeros_like(intended))
            self.decay_gone = torch.zeros_like(intended)
        torch.nan_to_num_(intended, 0.0, 0.0, 0.0)
        self.decay[0].addcmul_(intended, intended)
        self.decay[1].addcmul_(torch.nan_to_num_(stored, 0.0, 0.0, 0.0), intended)
        self.decay_gone.addcmul_(intended * ((stored == 0) & ~carried), intended)
        self.last_decay = intended

    def close_stretch(self, step: int) -> None:
        """Note the sums so far per parameter: the end of one stretch of the timeline."""
        if self.timeline and self.timeline[-1][0] == step:
            return
        count = len(self.segments)
        uu = torch.zeros(count, dtype=self.uu.dtype, device=self.device).index_add_(0, self.owner, self.uu)
        au = torch.zeros(count, dtype=self.uu.dtype, device=self.device).index_add_(0, self.owner, self.au)
        self.timeline.append((step, uu, au))

    # ------------------------------------------------------------------ read off at the end

    def edq(self, index: int) -> tuple[WindowedEdq, ...]:
        """Return the EDQ of parameter ``index`` for windows 1, 4, 16 and the whole run (0)."""
        part, cluster = self._part(index)
        rows = [(1, self.au[part], self.uu[part])]
        for window, (_, _, uu, au) in self.windows.items():
            if self.steps >= window:
                rows.append((window, au[part], uu[part]))
        rows.append((0, self.a[part] * self.u[part], self.u[part].square()))
        found = []
        for window, au, uu in rows:
            ratio = ratio_interval(au, uu, cluster)
            if ratio is not None:
                found.append(WindowedEdq(window=window, edq=ratio[0], low=ratio[1], high=ratio[2]))
        return tuple(found)

    def kept(self, index: int) -> tuple[float, float, WindowedEdq | None]:
        """Return what becomes of updates before the next step.

        The share of updated elements written over, the share of these that 16 bits hold, and the EDQ left.
        """
        part, cluster = self._part(index)
        ratio = ratio_interval(self.kept_au[part], self.kept_uu[part], cluster) if self.rewrites else None
        if ratio is None:
            return 0.0, 0.0, None
        rewritten = int(self.rewritten[part].sum())
        share = rewritten / (part.stop - part.start) / self.rewrites
        narrowed = int(self.narrowed[part].sum()) / max(rewritten, 1)
        return share, narrowed, WindowedEdq(window=1, edq=ratio[0], low=ratio[1], high=ratio[2])

    def net_edq(self, index: int) -> float | None:
        """Return stored travel against that of the shadow's last value, rounded once; None for a short one.

        For an optimizer that carries what rounding lost: its replayed update already contains the
        remainder of all earlier steps, so only the last one may be counted. Rounding the exact value once
        leaves less than all of a travel of an ulp or two: that much is no loss.
        """
        if self.first is None:
            return None
        part, _ = self._part(index)
        meant = (self.before - self.first)[part].double() + self.last_u[part].double()
        stored, first = (self.after - self.first)[part].double(), self.first[part].double()
        rounded = round_to(first + meant, self.fmt) - first
        weight = self.before[part].double().abs()
        if float((meant.abs() * 2 / (weight * self.fmt.eps + 1e-300) > 1).double().mean()) < 0.25:
            return None
        arrives = float((rounded * meant).sum())
        return float((stored * meant).sum()) / arrives if arrives > 0 else None

    def weight_decay(self, index: int, steps: int, per_step: float) -> Decay | None:
        """Return how much of the intended decay changes the stored result."""
        if self.decay is None or self.last_decay is None:
            return None
        part, cluster = self._part(index)
        ratio = ratio_interval(self.decay[1][part], self.decay[0][part], cluster)
        weight = float(self.before[part].double().square().sum())
        if ratio is None or weight <= 0:
            return None
        relative = math.sqrt(float(self.last_decay[part].square().sum()) / weight)
        return Decay(
            per_step=per_step or relative,  # a setting of another name may mean something else
            arrived=ratio[0],
            low=ratio[1],
            high=ratio[2],
            gone=float(self.decay_gone[part].sum() / self.decay[0][part].sum()),
            intended_total=relative * steps,
        )

    def histogram(self, index: int, of: Literal["count", "energy", "energy per lr"]) -> Histogram:
        """Return the headroom histogram in bits: of counts, or of squared intended updates.

        "energy per lr" is as if every learning rate had been 1, the latest steps weighing most.
        """
        sources = {"count": self.headroom, "energy": self.energy, "energy per lr": self.energy_per_lr}
        counts = sources[of][index * _BINS : (index + 1) * _BINS].tolist()
        low = _LOW_PER_LR if of == "energy per lr" else _LOW
        return Histogram(low=low, width=1 / _PER_BIT, counts=tuple(counts)).trimmed()

    def stretches(self, index: int) -> tuple[float | None, ...]:
        """Return the EDQ of each stretch of the timeline."""
        found: list[float | None] = []
        last_uu = last_au = 0.0
        for _, uu, au in self.timeline:
            now_uu, now_au = float(uu[index]), float(au[index])
            power = now_uu - last_uu
            found.append((now_au - last_au) / power if power > 0 else None)
            last_uu, last_au = now_uu, now_au
        return tuple(found)

    def _part(self, index: int) -> tuple[slice, int]:
        segment = self.segments[index]
        return slice(segment.start, segment.stop), segment.cluster


def clustered(values: Tensor, cluster: int) -> Tensor:
    """Return the float64 sums over runs of ``cluster`` neighbours; shape (n // cluster,)."""
    return values.double().view(-1, cluster).sum(1)


def ratio_interval(au: Tensor, uu: Tensor, cluster: int) -> tuple[float, float, float] | None:
    """Return sum(au)/sum(uu) with its 95 % interval, cluster-robust (Cochran 1977, section 6.4).

    None when nothing was intended. The elements of a cluster may depend on each other; the binomial
    interval would be too narrow.
    """
    au, uu = clustered(au, cluster), clustered(uu, cluster)
    power = float(uu.sum())
    if not power > 0:
        return None
    ratio = float(au.sum()) / power
    if len(uu) < 2:
        return ratio, ratio, ratio
    spread = float((au - ratio * uu).square().sum()) * len(uu) / (len(uu) - 1)
    error = _Z95 * math.sqrt(spread) / power
    return ratio, ratio - error, ratio + error


class GradientLedger:
    """Binades of the gradients of several parameters, and in which steps they were all zero."""

    def __init__(self, owner: Tensor, count: int) -> None:
        self.owner, self.count = owner, count
        self.bins = torch.zeros(count * BINADE_BINS, dtype=torch.int32, device=owner.device)
        self.all_zero = torch.zeros(count, dtype=torch.int32, device=owner.device)
        self.present = [0] * count
        self.absent = [0] * count

    def add(self, gradient: Tensor, present: list[bool], awaited: list[bool] | None = None) -> None:
        """Add the gradients of one step, shape (n,), float32 or float64.

        An absent one counts as absent where it was ``awaited``: not while a parameter rests on purpose.
        """
        mask = torch.tensor(present, device=self.owner.device)
        counted = mask[self.owner].to(torch.int32)
        self.bins.index_add_(0, self.owner * BINADE_BINS + binade_index(gradient), counted)
        non_zero = torch.zeros(self.count, dtype=torch.int32, device=self.owner.device)
        non_zero.index_add_(0, self.owner, (gradient != 0).to(torch.int32))
        self.all_zero += (non_zero == 0) & mask
        for index, here in enumerate(present):
            if here:
                self.present[index] += 1
            elif awaited is None or awaited[index]:
                self.absent[index] += 1

    def binades(self, index: int) -> Binades:
        """Return the binades of parameter ``index``."""
        counts = self.bins[index * BINADE_BINS : (index + 1) * BINADE_BINS].tolist()
        filled = Histogram(low=LOWEST_BINADE, width=1, counts=tuple(counts[1:-1])).trimmed()
        return Binades(exponents=filled, zeros=counts[0], non_finite=counts[-1])
