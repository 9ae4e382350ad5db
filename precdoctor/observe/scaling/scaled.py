"""Which gradients come from a scaled loss: followed from the result of ``scaler.scale`` to the parameters.

The node of the graph that multiplied the loss is marked in its metadata, which autograd keeps for such uses
(anomaly mode has its traceback there). The graphs of the first backward passes are walked.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from precdoctor.observe.lineage.made import storage_key
from precdoctor.observe.scaling.units import Sizes, sizes
from precdoctor.observe.watch import is_plain

#: key in the metadata of a node
_KEY = "precdoctor.scaled"
#: backward passes whose graph is walked, and nodes of one: beyond, nothing is claimed
_WALKS, _NODES = 16, 200_000
#: parameters whose gradient is measured after a walk, and passes after which all are
_MEASURED, _PASSES = 8, 128
#: nodes from the loss on among which a multiplication by hand is looked for
_NEAR = 6

Marks = set[str]


class ScaledGradients:
    """Knows of parameters whether their gradient is "scaled", "plain" or "unknown"; forgets at each step."""

    def __init__(self) -> None:
        self._walks = 0
        self._marks: dict[int, tuple[weakref.ref[Tensor], Marks]] = {}
        #: norms of some gradients after the last pass that was walked
        self._norms: dict[int, float] = {}
        self._reached: list[weakref.ref[Tensor]] = []
        #: all leaves that were ever reached, by their identity, and passes after which they were measured
        self._leaves: dict[int, weakref.ref[Tensor]] = {}
        self._passes = 0
        #: storages of the gradients that the last pass has left, until one is divided, and their sizes
        self.storages: frozenset[int] = frozenset()
        self.sizes: dict[int, Sizes] = {}

    @property
    def exhausted(self) -> bool:
        """Tell whether no further pass is walked."""
        return self._walks >= _WALKS

    @staticmethod
    def mark(outputs: Any) -> None:
        """Mark what ``scaler.scale`` has returned."""
        for tensor in _tensors(outputs):
            if tensor.grad_fn is not None:
                metadata: Any = tensor.grad_fn.metadata
                metadata[_KEY] = True

    def before_backward(self, losses: list[Tensor], seeds: Any, *, by_hand: bool) -> None:
        """Walk the graph of a backward pass; ``by_hand``: the program has read the scale itself."""
        self._walks += 1
        self._reached = []
        given = seeds is not None and any(s is not None for s in _listed(seeds))
        for loss in losses:
            leaves, marked, multiplied, whole = _walk(loss)
            mark = "scaled" if marked else "plain"
            if not marked and (given or not whole or (by_hand and multiplied)):
                mark = "unknown"
            for leaf in leaves:
                known = self._marks.get(id(leaf))
                fresh = known is None or known[0]() is not leaf or leaf.grad is None
                marks: Marks = set() if fresh or known is None else known[1]
                self._marks[id(leaf)] = (weakref.ref(leaf), marks | {mark})
                self._reached.append(weakref.ref(leaf))
                self._leaves[id(leaf)] = self._reached[-1]

    @property
    def reached(self) -> frozenset[int]:
        """Return the identities of the leaves of the last pass that was walked."""
        return frozenset(id(leaf) for reference in self._reached if (leaf := reference()) is not None)

    @property
    def are_scaled(self) -> bool:
        """Tell whether all gradients of the pass at hand are scaled."""
        marks = [self._marks[key][1] for key in self.reached if key in self._marks]
        return bool(marks) and all(m == {"scaled"} for m in marks)

    @property
    def wants_measuring(self) -> bool:
        """Tell whether the sizes of gradients are still measured after a pass."""
        return self._passes < _PASSES and bool(self._leaves)

    def measure(self) -> None:
        """Measure the gradients that a pass has left; where it was not walked, all that there are."""
        self._passes += 1
        references = self._leaves.values() if self.exhausted else self._reached
        leaves = [leaf for reference in references if (leaf := reference()) is not None]
        self.storages = frozenset(storage_key(g) for g in gradients_of(leaves) if is_plain(g))
        measured = ((id(p), sizes(p.grad)) for p in leaves if p.grad is not None)
        self.sizes |= {key: found for key, found in measured if found is not None}

    def after_backward(self) -> None:
        """Measure some of the gradients that a pass which was walked has left."""
        for reference in self._reached[:_MEASURED]:
            leaf = reference()
            if leaf is not None and leaf.grad is not None and not leaf.grad.is_sparse:
                self._norms[id(leaf)] = float(leaf.grad.detach().double().norm())

    def clear(self) -> None:
        """Forget all gradients."""
        self._marks, self._norms, self.storages, self.sizes = {}, {}, frozenset(), {}

    def of(self, optimizer: torch.optim.Optimizer) -> Marks:
        """Return what the gradients of an optimizer are, all marks together."""
        found: Marks = set()
        for parameter in parameters_of(optimizer):
            known = self._marks.get(id(parameter))
            if parameter.grad is not None and known is not None and known[0]() is parameter:
                found |= known[1]
        return found

    def shrunk(self, optimizer: torch.optim.Optimizer) -> float | None:
        """Return by how much gradients have become smaller since the pass; None where none was measured."""
        ratios = []
        for parameter in parameters_of(optimizer):
            before = self._norms.get(id(parameter))
            if before and parameter.grad is not None and not parameter.grad.is_sparse:
                ratios.append(float(parameter.grad.detach().double().norm()) / before)
        return max(ratios, default=None)

    def measured(self, optimizer: torch.optim.Optimizer) -> float:
        """Return the largest of the norms that were measured after the pass."""
        return max((self._norms.get(id(p), 0.0) for p in parameters_of(optimizer)), default=0.0)

    def forget(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget the gradients of an optimizer: it has made its step."""
        if not self._marks:
            return
        for parameter in parameters_of(optimizer):
            self._marks.pop(id(parameter), None)
            self._norms.pop(id(parameter), None)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters that an optimizer holds."""
    groups: Iterable[Any] = getattr(optimizer, "param_groups", ())
    return [p for group in groups for p in group["params"] if isinstance(p, Tensor)]


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients that are there."""
    return [p.grad for p in parameters if p.grad is not None]


def _walk(loss: Tensor) -> tuple[list[Tensor], bool, bool, bool]:
    """Return the leaves below a loss, whether it was scaled, multiplied near the end, and walked whole."""
    if loss.grad_fn is None:
        return ([loss] if loss.requires_grad else []), False, False, True
    leaves: dict[int, Tensor] = {}
    marked = multiplied = False
    todo: list[Any] = [loss.grad_fn]
    seen = set(todo)
    for count in range(_NODES):
        if count == len(todo):
            return list(leaves.values()), marked, multiplied, True
        node = todo[count]
        if node.name().startswith(("Mul", "Div")):
            marked = marked or _KEY in node.metadata
            multiplied = multiplied or count < _NEAR
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves[id(variable)] = variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return list(leaves.values()), marked, multiplied, False


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
