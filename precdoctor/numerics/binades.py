"""Binade histograms: the exponents of a tensor, counted, so that its range outlives it."""

from __future__ import annotations

import torch

from precdoctor.formats import FLOAT32

#: exponent of float32's smallest subnormal: the binade of bin 1
LOWEST_BINADE = FLOAT32.min_exponent - FLOAT32.precision + 1
#: number of bins: zeros, one per binade of float32, not finite
BINADE_BINS = 1 + (FLOAT32.max_exponent - LOWEST_BINADE + 1) + 1


def binade_index(x: torch.Tensor) -> torch.Tensor:
    """Return the bin of each element, as int64: 0 for zero, ``1 + e - LOWEST_BINADE`` for the binade of
    ``2**e``, the last for what is not finite.

    The range is float32's: a float64 below it counts as zero, one beyond it as not finite.
    """
    bits = x.detach().double().abs().view(torch.int64)  # every subnormal of a smaller format is normal here
    return bits.bitwise_right_shift_(52).sub_(1023 + LOWEST_BINADE - 1).clamp_(0, BINADE_BINS - 1)


def binades(x: torch.Tensor) -> torch.Tensor:
    """Return the int64 counts of the `BINADE_BINS` bins; counts of several tensors add up."""
    index = binade_index(x).flatten()
    return torch.zeros(BINADE_BINS, dtype=torch.int64, device=x.device).scatter_add_(
        0, index, torch.ones((), dtype=torch.int64, device=x.device).expand_as(index)
    )
