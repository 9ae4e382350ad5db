"""What is used of a weight, compared with it: figures that numpy computes as well."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from precdoctor.observe.quantizers.fidelity import decibels, fidelity
from precdoctor.observe.watch import Watch


def to_int8(weight: Tensor) -> Tensor:
    """Round to 8 bits without a sign, which a signed format wraps around."""
    low, scale = weight.min(), (weight.max() - weight.min()) / 255
    codes = torch.round((weight - low) / scale).to(torch.int8)
    return codes.float() * scale + low


@pytest.mark.parametrize(
    ("use", "follows"),
    [
        (lambda w: (w * 20).round() / 20, True),
        (lambda w: (w * 20).round(), True),  # codes whose scale follows after the product
        (lambda w: (w * 20).round() + 128, True),  # and whose zero point does
        (lambda w: torch.tanh(w) / torch.tanh(w).abs().max(), True),
        (to_int8, False),
        (lambda w: w.flip(0), False),
    ],
)
def test_correlation_tells_what_follows_the_weight(use: Callable[[Tensor], Tensor], follows: bool) -> None:
    weight = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    used = use(weight)
    seen = fidelity(3, weight, used, Watch.of(weight.numel(), 0))
    assert seen.correlation == pytest.approx(np.corrcoef(weight.flatten(), used.flatten())[0, 1], abs=1e-6)
    assert (seen.correlation > 0.9) is follows


def test_a_constant_has_no_correlation() -> None:
    weight = torch.ones(8, 8)
    assert fidelity(0, weight, weight * 0.5, Watch.of(64, 0)).correlation == 1.0


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [(100.0, 1.0, 20.0), (1.0, 0.0, None), (0.0, 1.0, None), (1.0, np.inf, None)],
)
def test_decibels(signal: float, noise: float, expected: float | None) -> None:
    assert decibels(signal, noise) == (None if expected is None else pytest.approx(expected))
