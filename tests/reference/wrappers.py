"""What the optimizer wrappers do, the slow and obvious way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy
import torch

#: numpy's type and the significand bits of each low format
LOW = {torch.bfloat16: (ml_dtypes.bfloat16, 8), torch.float16: (numpy.float16, 11)}


class MasterLoop:
    """Float32 masters as programs write them by hand: the optimizer is given the masters."""

    def __init__(self, parameters: Sequence[torch.Tensor], make: Any) -> None:
        self.parameters = list(parameters)
        self.masters = [torch.nn.Parameter(p.detach().float().clone()) for p in self.parameters]
        self.optimizer = make(self.masters)

    @torch.no_grad()
    def step(self) -> None:
        for p, master in zip(self.parameters, self.masters, strict=True):
            master.grad = None if p.grad is None else p.grad.float()
        self.optimizer.step()
        for p, master in zip(self.parameters, self.masters, strict=True):
            p.copy_(master)

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None


def kahan_descent(start: float, gradients: Sequence[float], lr: float, dtype: torch.dtype) -> list[float]:
    """Return one weight after each step of gradient descent with Kahan summation; lr a power of two."""
    low, bits = LOW[dtype]
    p, compensation, history = low(start), low(0), []
    for gradient in gradients:
        meant = numpy.float32(p) + numpy.float32(compensation) * numpy.float32(2.0**-bits)
        meant = numpy.float32(meant - numpy.float32(lr) * numpy.float32(gradient))
        p = low(meant)
        compensation = low((meant - numpy.float32(p)) * numpy.float32(2.0**bits))
        history.append(float(p))
    return history


def neighbours(value: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the largest number of the format that is not above ``value``, and the smallest not below."""
    low, _ = LOW[dtype]
    near = low(value)
    if float(near) == value:
        return value, value
    other = numpy.nextafter(near, low(numpy.inf if float(near) < value else -numpy.inf))
    return min(float(near), float(other)), max(float(near), float(other))
