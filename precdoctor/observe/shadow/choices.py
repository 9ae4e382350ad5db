"""What is chosen by values that have lost their digits, beside what the exact ones would choose.

Neighbours, best candidates, an order: indices carry no error that could be followed further, so it is here
that a damaged distance or score does its harm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.shadow.table import replay

#: exact value of what is chosen, off that of what should have been, from which it is another choice
_OFF = 0.1


def chosen_otherwise(operation: Operation, tensor: Tensor, exact: Tensor) -> float | None:
    """Return the share of choices that are off those by ``exact`` values; None where nothing is chosen.

    Elements of nearly the same value are the same choice, and so is another order of the best few.
    """
    chosen = _indices(operation.outputs)
    if chosen is None or not exact.numel() or not bool(torch.isfinite(exact).all()):
        return None
    right = replay(
        operation.func, operation.args, operation.kwargs, lambda t: exact if t is tensor else t.detach()
    )
    should = _indices(tensors_in((right,)))
    if should is None or should.shape != chosen.shape:
        return None
    dim = _argument(operation, "dim")
    one, other = (_values(exact, index, dim) for index in (chosen, should))
    if "topk" in operation.name:
        one, other = one.sort(0 if dim is None else dim).values, other.sort(0 if dim is None else dim).values
    return float(((one - other).abs() > _OFF * other.abs()).double().mean())


def _indices(tensors: Any) -> Tensor | None:
    found = [t for t in tensors if t.dtype == torch.int64]
    return found[0] if len(found) == 1 else None


def _values(exact: Tensor, index: Tensor, dim: int | None) -> Tensor:
    if dim is None:
        return exact.reshape(-1)[index.reshape(-1)]
    return exact.gather(dim, index if index.dim() == exact.dim() else index.unsqueeze(dim))


def _argument(operation: Operation, name: str) -> Any:
    for position, argument in enumerate(operation.func._schema.arguments):
        if argument.name == name:
            given = operation.args[position] if position < len(operation.args) else argument.default_value
            return operation.kwargs.get(name, given)
    return None
