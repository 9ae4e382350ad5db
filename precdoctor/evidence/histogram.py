"""A histogram with equal bins: the compressed memory of a tensor that is gone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Weights of equally wide bins; bin ``i`` covers ``[low + i*width, low + (i+1)*width)``."""

    #: left edge of the first bin, in the unit of the quantity
    low: float
    #: width of a bin, in the unit of the quantity
    width: float
    #: weight of each bin: a count, or a sum such as energy
    counts: tuple[float, ...]

    @property
    def total(self) -> float:
        """Return the weight of all bins together."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Return the value below which ``share`` (0..1) of the weight lies; None when empty.

        Inside a bin the weight is taken as spread evenly, so the error is below one width.
        """
        target, below = share * self.total, 0.0
        if self.total <= 0:
            return None
        for index, count in enumerate(self.counts):
            if count > 0 and below + count >= target:
                return self.low + (index + (target - below) / count) * self.width
            below += count
        return self.low + len(self.counts) * self.width

    def share_below(self, value: float) -> float:
        """Return the share (0..1) of the weight below ``value``; 0 when empty."""
        if self.total <= 0:
            return 0.0
        below = 0.0
        for index, count in enumerate(self.counts):
            left = self.low + index * self.width
            below += count * min(max((value - left) / self.width, 0.0), 1.0)
        return below / self.total

    def trimmed(self) -> Histogram:
        """Return the same histogram without its empty bins at both ends."""
        filled = [index for index, count in enumerate(self.counts) if count]
        if not filled:
            return Histogram(low=self.low, width=self.width, counts=())
        first, last = filled[0], filled[-1]
        return Histogram(
            low=self.low + first * self.width, width=self.width, counts=self.counts[first : last + 1]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Binades:
    """How often each binade occurs among values; range, underflow and overflow are read from it."""

    #: counts per binade; the bin at ``e`` holds the values with ``2**e <= abs(x) < 2**(e+1)``
    exponents: Histogram
    #: number of exact zeros
    zeros: int = 0
    #: number of infinities and NaN
    non_finite: int = 0
