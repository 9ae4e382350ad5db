"""How much of a tensor survives: effective descent quality and signal-to-quantization-noise ratio."""

from __future__ import annotations

import torch


def edq(applied: torch.Tensor, intended: torch.Tensor) -> torch.Tensor:
    """Return <applied, intended> / <intended, intended>: 1 = as meant, 0 = frozen (Collage, Yu et al. 2024).

    A float64 scalar; NaN where nothing was intended.
    """
    meant = intended.detach().double().flatten()
    return torch.dot(applied.detach().double().flatten(), meant) / torch.dot(meant, meant)


def sqnr_db(x: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Return 10 log10(sum x^2 / sum (x - quantized)^2) in decibels; a float64 scalar, inf where exact."""
    exact = x.detach().double()
    noise = exact - quantized.detach().double()
    return 10 * torch.log10(exact.square().sum() / noise.square().sum())
