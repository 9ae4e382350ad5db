"""The autograd graph below a loss: which parameters it reaches, and through what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

#: backward nodes of operations whose derivative is zero wherever it exists
ZERO_DERIVATIVE = frozenset(
    f"{name}Backward0"
    for name in ("Round", "Floor", "Ceil", "Trunc", "Fix", "Sign", "Sgn", "Heaviside", "FloorDivide")
)


@dataclass(slots=True)
class Reach:
    """The leaves below some loss tensors."""

    leaves: list[Tensor] = field(default_factory=list)
    #: leaves reached only through nodes of zero derivative, and the names of these nodes
    only_zero: list[Tensor] = field(default_factory=list)
    zero_nodes: set[str] = field(default_factory=set)


def reach(losses: Iterable[Tensor]) -> Reach:
    """Walk the graph below ``losses``. A node that hides its inside (checkpointing) is a leaf-less end."""
    found = Reach()
    losses = list(losses)
    everything = _leaves(losses, found.zero_nodes, through_zero=True)
    open_paths = _leaves(losses, set(), through_zero=False)
    found.leaves = list(everything.values())
    found.only_zero = [leaf for key, leaf in everything.items() if key not in open_paths]
    return found


def _leaves(losses: list[Tensor], zero_nodes: set[str], *, through_zero: bool) -> dict[int, Tensor]:
    leaves: dict[int, Tensor] = {}
    todo: list[Any] = []
    for loss in losses:
        if loss.grad_fn is not None:
            todo.append(loss.grad_fn)
        elif loss.requires_grad:
            leaves[id(loss)] = loss
    seen = set(todo)
    while todo:
        node = todo.pop()
        name = node.name()
        if name in ZERO_DERIVATIVE:
            zero_nodes.add(name)
            if not through_zero:
                continue
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves[id(variable)] = variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return leaves
