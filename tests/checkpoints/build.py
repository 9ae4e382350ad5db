"""Tensors as entries, and checkpoints on disk, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from precdoctor.checkpoints.checkpoint import Entry
from precdoctor.checkpoints.sources import Loaded


def entry(tensor: torch.Tensor) -> Entry:
    """Return an entry whose data is in memory."""
    return Entry(dtype=tensor.dtype, shape=tuple(tensor.shape), source=Loaded(lambda: tensor))


def trained(dtype: torch.dtype = torch.float32, steps: int = 5, **settings: Any) -> tuple[nn.Module, Any]:
    """Return a small model with a norm and its optimizer, after some steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.Linear(64, 8)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), **{"lr": 1e-3, **settings})
    step(model, optimizer, steps)
    return model, optimizer


def step(model: nn.Module, optimizer: Any, steps: int) -> None:
    """Train on."""
    for _ in range(steps):
        inputs = torch.randn(32, 16)
        out = model(inputs.to(next(model.parameters()).dtype)).float()
        (out - inputs[:, :8]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Return what one saves to go on from."""
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def saved(value: Any, path: Path) -> Path:
    """Write with torch.save; return the path."""
    torch.save(value, path)
    return path
