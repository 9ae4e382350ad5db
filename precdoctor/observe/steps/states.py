"""Optimizer state held in a format below float32: what was meant to be stored against what was."""

from __future__ import annotations

import torch
from torch import Tensor

from precdoctor.formats import Format

#: steps with a gradient from which state that is 0 throughout says something
_DRIVEN = 3
#: the mean of the squared gradients is that of the last observed steps, this many or up to twice as many
_RECENT = 8


class StateLedger:
    """Sums over the observed steps for one key of an optimizer's state, per watched element."""

    def __init__(self, like: Tensor, fmt: Format) -> None:
        self.fmt = fmt
        zeros = [torch.zeros(len(like), dtype=torch.float64, device=like.device) for _ in range(9)]
        self.uu, self.au, self.down_uu, self.down_au, self.intended, self.lost, *rest = zeros
        #: steps with a gradient; of those, that left the exact state other than 0; of those, stored as 0
        self.driven, self.fed, self.flushed = rest
        #: elements that were something else than 0, and the largest magnitude of each one's gradient
        self.ever = torch.zeros_like(self.uu, dtype=torch.bool)
        self.largest = torch.zeros_like(self.uu)
        self.last = torch.zeros_like(self.uu)
        #: what an exact average of the squared gradients would hold, had it lived as long
        self.exact = torch.zeros_like(self.uu)
        self.seen = torch.zeros_like(self.uu, dtype=torch.bool)
        #: sums and numbers of squared gradients in the stretch of observed steps at hand and in the last one
        self._squares = [torch.zeros_like(self.uu) for _ in range(4)]
        # normal equations of u = x*s + y*g (first moment) and of u = x*s + y*g*g (second moment)
        self._fit: tuple[int, float] | None = None
        self._count = 0
        self._sums = {
            power: [torch.zeros((), dtype=torch.float64, device=like.device) for _ in range(6)]
            for power in (1, 2)
        }

    def add(
        self, old: Tensor, stored: Tensor, meant: Tensor, gradient: Tensor, pick: Tensor | None, elapsed: int
    ) -> None:
        """Add one observed step; float64 tensors of the elements ``pick`` (None = all).

        ``elapsed`` is the number of steps since the last observation.
        """
        where = slice(None) if pick is None else pick
        u = torch.nan_to_num(meant - old, 0.0, 0.0, 0.0)
        a = torch.nan_to_num(stored - old, 0.0, 0.0, 0.0)
        down = (u < 0).double()
        for total, value in (
            (self.uu, u * u),
            (self.au, a * u),
            (self.down_uu, down * u * u),
            (self.down_au, down * a * u),
            (self.intended, (u != 0).double()),
            (self.lost, ((u != 0) & (a == 0)).double()),
            (self.driven, (gradient != 0).double()),
            (self.fed, ((gradient != 0) & (meant != 0)).double()),
            (self.flushed, ((gradient != 0) & (meant != 0) & (stored == 0)).double()),
        ):
            total[where] += value
        for power, sums in self._sums.items():
            g = gradient**power
            for total, pair in zip(
                sums, ((old, old), (old, g), (g, g), (u, old), (u, g), (u, u)), strict=True
            ):
                total += torch.nan_to_num(torch.dot(*pair))
        self.last[where] = stored
        self.ever[where] |= stored != 0
        self.largest[where] = torch.maximum(self.largest[where], gradient.abs().double())
        if self._count % _RECENT == 0:
            self._squares = [torch.zeros_like(self.uu), torch.zeros_like(self.uu), *self._squares[:2]]
        self._squares[0][where] += gradient * gradient
        self._squares[1][where] += 1
        self._count += 1
        if self._fit is None and self._count in (3, 10, 30):  # reading it waits for the device
            self._fit = self.moment()
        if self._fit is not None and self._fit[0] == 2:
            keep = self._fit[1] ** elapsed
            square = gradient * gradient
            fresh = ~self.seen[where]
            # it starts from what the state already holds
            self.exact[where] = torch.where(fresh, old, self.exact[where]) * keep + (1 - keep) * square
            self.seen[where] = True

    def never(self, part: slice) -> tuple[float, float]:
        """Return the share of elements with gradients that were always 0, and the largest gradient of
        theirs.
        """
        driven = self.driven[part] >= _DRIVEN
        never = driven & ~self.ever[part]
        largest = (self.largest[part] * never).max() if len(never) else torch.zeros(())
        return float(never.double().sum()) / max(float(driven.double().sum()), 1.0), float(largest)

    def moment(self) -> tuple[int, float] | None:
        """Return (power of the gradient that is averaged, beta), None when the state is no such average."""
        for power, sums in self._sums.items():
            ss, sg, gg, us, ug, uu = (float(x) for x in sums)
            if ss == 0 and gg > 0 and uu - ug * ug / gg < 1e-3 * uu and 0 < ug < gg:
                return power, 1.0 - ug / gg  # it has stayed 0
            det = ss * gg - sg * sg
            if uu <= 0 or gg <= 0 or ss <= 0 or det <= 1e-9 * ss * gg:
                continue
            x, y = (us * gg - ug * sg) / det, (ug * ss - us * sg) / det
            unexplained = uu - x * us - y * ug
            if unexplained < 1e-3 * uu and -1.0 < x < 0 and abs(x + y) < 0.02 * abs(x):
                return power, 1.0 + x
        return None

    def over_exact(self, part: slice) -> float | None:
        """Return the median of stored / exact value over some elements; None when not known."""
        known = self.seen[part] & (self.exact[part] > 0)
        if not bool(known.any()):
            return None
        return float((self.last[part][known] / self.exact[part][known]).median())

    def over_gradient(self, part: slice) -> float | None:
        """Return the median of stored value / mean of the last squared gradients; None when not known.

        That mean is what the average falls to, or rises to, if gradients stay as they are.
        """
        sums, counts, last_sums, last_counts = (values[part] for values in self._squares)
        squares = sums + last_sums
        known = squares > 0
        if not bool(known.any()):
            return None
        return float((self.last[part] * (counts + last_counts) / squares)[known].median())
