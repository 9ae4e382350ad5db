"""The autograd graph below a loss: which parameters it reaches, and through what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

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
    everything, nodes = _leaves(losses)
    found.zero_nodes = {name for node in nodes if (name := node.name()) in ZERO_DERIVATIVE}
    open_paths, _ = _leaves(losses, _has_derivative)
    found.leaves = list(everything.values())
    found.only_zero = [leaf for key, leaf in everything.items() if key not in open_paths]
    return found


def route(used: Tensor, leaf: Tensor) -> tuple[str, set[str]]:
    """Return how gradient gets from a tensor to a leaf, and the names of the nodes that stand in its way.

    "cut": not at all; "zero derivative": every way leads through a node of zero derivative; "scale only":
    every other one through a tensor much smaller than the leaf, such as a scale; "custom function": every
    other one through functions of the user's own, which may return what they like; "open".
    """
    everything, nodes = _leaves([used])
    if id(leaf) not in everything:
        return "cut", set()
    ways: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("zero derivative", _has_derivative),
        ("scale only", lambda node: _has_derivative(node) and 2 * _numel(node) >= leaf.numel()),
        ("custom function", lambda node: _has_derivative(node) and not _is_custom(node)),
    )
    for name, passes in ways:
        if id(leaf) not in _leaves([used], passes)[0]:
            return name, {node.name() for node in nodes if _is_custom(node) or not _has_derivative(node)}
    return "open", set()


def _has_derivative(node: Any) -> bool:
    return node.name() not in ZERO_DERIVATIVE


def _is_custom(node: Any) -> bool:
    return isinstance(node, BackwardCFunction)


def _numel(node: Any) -> float:
    """Return the elements of the largest result of the operation behind a node, infinity where not known."""
    shapes = [tuple(known.shape) for known in getattr(node, "_input_metadata", ())]
    return max((math.prod(shape) for shape in shapes), default=math.inf)


def _leaves(
    losses: list[Tensor], passes: Callable[[Any], bool] = lambda _: True
) -> tuple[dict[int, Tensor], list[Any]]:
    """Return the leaves that are reached through nodes that let pass, and all nodes on the way."""
    leaves: dict[int, Tensor] = {}
    todo: list[Any] = []
    for loss in losses:
        if loss.grad_fn is not None:
            todo.append(loss.grad_fn)
        elif loss.requires_grad:
            leaves[id(loss)] = loss
    seen = dict.fromkeys(todo)
    while todo:
        node = todo.pop()
        if not passes(node):
            continue
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves[id(variable)] = variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen[following] = None
                todo.append(following)
    return leaves, list(seen)
