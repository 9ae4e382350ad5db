"""What is chosen by values that have lost their digits, beside what the exact ones would choose.

Neighbours, best candidates, an order: indices carry no error that could be followed further, so it is here
that a damaged distance or score does its harm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.shadow.look import floats
from precdoctor.observe.shadow.sites import Site
from precdoctor.observe.shadow.table import ShadowTable, replay

#: exact value of what is chosen, off that of what should have been, from which it is another choice
_OFF = 0.1
#: share of what is chosen by damaged values from which it is another choice altogether
_CHOICES = 0.5
#: indices that wait for their use at the same time
_MOST = 64


class _Choice(NamedTuple):
    """Indices that damaged values gave, and that nothing has used so far."""

    indices: Memory
    damage: Site
    number: int
    spot: Spot | None
    share: float

    def matters(self) -> None:
        """Count it."""
        self.damage.reach("choice", self.number, self.spot, self.share)


class ChoiceWatch:
    """Knows the indices that damaged values gave, until they are used.

    Where an operation gives the values as well (the largest, the best few), the indices may not be what it
    was called for.
    """

    def __init__(self, code: UserCode, table: ShadowTable) -> None:
        self._code, self._table = code, table
        self._unused: dict[int, _Choice] = {}

    def used(self, operation: Operation) -> None:
        """Count the choices that an operation uses."""
        for tensor in operation.inputs if self._unused else ():
            choice = self._unused.pop(storage_key(tensor), None) if tensor.dtype == torch.int64 else None
            if choice is not None and not choice.indices.gone:
                choice.matters()

    def chosen(self, operation: Operation, number: int) -> None:
        """Look at what an operation of the forward pass ``number`` chooses."""
        tensor = next(iter(floats(operation.inputs)), None)
        shadow = self._table.get(tensor) if tensor is not None else None
        if tensor is None or shadow is None or shadow.damage is None:
            return
        share = _chosen_otherwise(operation, tensor, shadow.view(tensor))
        indices = _indices(operation.outputs)
        if share is None or indices is None or share <= _CHOICES:
            return
        spot = self._code.innermost(operation.frame)[0]
        choice = _Choice(Memory(indices), shadow.damage, number, spot, share)
        if len(operation.outputs) == 1:
            choice.matters()
        elif len(self._unused) < _MOST:
            self._unused[choice.indices.key] = choice

    def clear(self) -> None:
        """Forget the indices at hand."""
        self._unused.clear()


def _chosen_otherwise(operation: Operation, tensor: Tensor, exact: Tensor) -> float | None:
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
