"""The way of one tensor from one file to another: identical bits, distance in ulps, headroom of the travel.

Identical elements and the largest distance are counted over all elements. What needs decoding (the
distribution of distances, headroom) is read from a sample of runs, from all elements of small tensors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from precdoctor.checkpoints.bits import Bits, Farthest, Layout, scratch, ulps_between
from precdoctor.evidence import Histogram, Travel
from precdoctor.numerics import half_ulp, headroom_bits

#: elements up to which all are decoded; of larger tensors one in ``_ONE_IN``, at most ``_MOST``
_ALL, _ONE_IN, _MOST = 1 << 12, 1024, 1 << 16
#: shortest run, in elements
_RUN = 32
#: headroom beyond which it is not told apart, in bits
_FAR = 64.0


class Comparison:
    """Compares the parts of two tensors of one format, in order."""

    def __init__(self, layout: Layout, numel: int, part: int) -> None:
        self._layout, self._numel = layout, numel
        self._identical = self._seen = self._farthest = 0
        limit = min(max(_ALL, numel // _ONE_IN), _MOST)
        self._run = numel if numel <= _ALL else max(_RUN, math.ceil(limit / math.ceil(numel / part)))
        self._largest = Farthest(layout, min(part, numel))
        self._flags = scratch("same", (min(part, numel),), np.dtype(np.bool_))
        self._samples: list[tuple[Bits, Bits]] = []

    def see(self, first: Bits, second: Bits, magnitudes: tuple[Bits, Bits], *, finite: bool) -> None:
        """Compare the next part: as many elements of each, and the same without their signs.

        ``finite`` tells that all of them are.
        """
        same = int(np.count_nonzero(np.equal(first, second, out=self._flags[: len(first)])))
        if same < len(first):
            self._farthest = max(self._farthest, self._largest(first, second, *magnitudes, finite=finite))
        self._identical += same
        run = min(self._run, len(first))
        # not always the beginning of a part, which may be the same column of a matrix
        start = (self._seen * 5) % 8191 % (len(first) - run + 1)
        self._samples.append((first[start : start + run].copy(), second[start : start + run].copy()))
        self._seen += len(first)

    @property
    def identical(self) -> bool:
        """Tell whether all bits were the same."""
        return self._identical == self._seen

    def result(self, **rounding: Any) -> Travel:
        """Return what was found; ``rounding`` is passed on."""
        layout = self._layout
        empty = np.empty(0, layout.unsigned)
        first = np.concatenate([a for a, _ in self._samples] or [empty])
        second = np.concatenate([b for _, b in self._samples] or [empty])
        before = layout.decode(first)
        fine = before.isfinite()
        # towards zero, where the gap is the smaller one
        around = half_ulp(before[fine], -before[fine].sign(), layout.format).numpy()
        told: dict[str, Any] = {
            "format": layout.format.name,
            "compared": self._seen,
            "identical": self._identical,
            "half_ulp_low": _quantile(around, 0.01),
            "half_ulp_median": _quantile(around, 0.5),
        }
        moved = torch.from_numpy(first != second) & fine
        if not self.identical and moved.any():
            told |= self._moved(first[moved.numpy()], second[moved.numpy()])
        return Travel(**told, **rounding, ulps_max=float(self._farthest))

    def _moved(self, first: Bits, second: Bits) -> dict[str, Any]:
        layout = self._layout
        before, after = layout.decode(first), layout.decode(second)
        travel = after - before
        distance = ulps_between(first, second, layout).astype(np.float64)
        kept = travel.isfinite()
        half = half_ulp(before[kept], travel[kept], layout.format).numpy()
        headroom = headroom_bits(before[kept], travel[kept], layout.format).numpy()
        return {
            "sampled": len(first),
            "ulps": histogram(np.log2(distance[distance > 0]), 1.0),
            "ulps_median": _quantile(distance, 0.5),
            "ups_share": float((travel > 0).double().mean()),
            "headroom_bits": histogram(headroom, 0.5),
            "typical": _quantile(travel[kept].abs().numpy(), 0.5),
            "half_ulp_passed": _quantile(half, 0.99),
        }


def histogram(values: NDArray[np.float64], width: float) -> Histogram:
    """Return the counts of values in bins of that width, on a grid that goes through 0."""
    values = values[~np.isnan(values)].clip(-_FAR, _FAR)
    if not len(values):
        return Histogram(low=0.0, width=width, counts=())
    bins = np.floor(values / width).astype(np.int64)
    low = int(bins.min())
    return Histogram(
        low=low * width, width=width, counts=tuple(np.bincount(bins - low).astype(float).tolist())
    )


def _quantile(values: NDArray[np.float64], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed; 0 of none."""
    if not len(values):
        return 0.0
    place = max(math.ceil(share * len(values)) - 1, 0)
    return float(np.partition(values, place)[place])
