"""A slow, obvious twin of the shadow: the same function run in float64, with casts that do nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Cast = Callable[[Tensor], Tensor]
#: a computation of some tensors, told how to cast to the low format
Program = Callable[[list[Tensor], Cast], Tensor]


def exact(program: Program, inputs: list[Tensor]) -> Tensor:
    """Return what a program gives in float64."""
    return program([t.double() for t in inputs], lambda tensor: tensor.double())


def actual(program: Program, inputs: list[Tensor], low: torch.dtype) -> Tensor:
    """Return what a program gives with its casts to ``low``."""
    return program([t.clone() for t in inputs], lambda tensor: tensor.to(low))


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Return the norm of the error over the norm of the exact values."""
    return float(((actual.double() - exact).norm() / exact.norm()).detach())
