"""Programs that the tests of the wrappers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from precdoctor.remedies import Float32State, KahanSummation, MasterWeights, StochasticRounding
from precdoctor.remedies.wrappers import Float32Step
from tests.test_harmless import OPTIMIZERS

WRAPPERS: tuple[type[Float32Step], ...] = (Float32State, StochasticRounding, KahanSummation, MasterWeights)
Make = Callable[[Any], torch.optim.Optimizer]


def adamw(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, **options)


def weight(value: float = 1.0, size: int = 8, dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    return nn.Parameter(torch.full((size,), value, dtype=dtype))


def net(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.LayerNorm(20), nn.Linear(20, 3)).to(dtype)


def train(model: nn.Module, optimizer: Any, steps: int, *, first: int = 0) -> None:
    """Train on batches that depend on the number of the step alone."""
    dtype = next(model.parameters()).dtype
    for step in range(first, first + steps):
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x.to(dtype)).float().square().mean().backward()
        optimizer.step()


def bits(model: nn.Module) -> list[list[int]]:
    """Return the weights, bit by bit."""
    return [p.detach().contiguous().view(-1).view(torch.uint8).tolist() for p in model.parameters()]


__all__ = ["OPTIMIZERS", "WRAPPERS", "Make", "adamw", "bits", "net", "train", "weight"]
