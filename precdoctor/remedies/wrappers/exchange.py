"""Other tensors in the place of an optimizer's parameters, wherever the optimizer keeps them.

Assigning a float32 tensor to ``parameter.data`` instead would be shorter, and wrong: torch then drops the
parameter's gradient accumulator, and DistributedDataParallel silently averages no gradient from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

#: attributes are searched this deep: groups are a list of dicts of lists
_DEPTH = 3


def family(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizer and those it steps itself, found among its attributes."""
    found = [optimizer]
    for member in found:  # grows meanwhile
        for name, value in vars(member).items():
            items = () if name in ("state", "param_groups") else _items(value)
            for item in (value, *items):
                if isinstance(item, Optimizer) and all(item is not known for known in found):
                    found.append(item)
    return found


def parameters(optimizers: Iterable[Optimizer]) -> Iterator[Tensor]:
    """Yield every parameter of the groups once."""
    seen = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter


def exchange(optimizers: Iterable[Optimizer], others: Mapping[int, Tensor]) -> None:
    """Replace tensors, given by their ``id``, in groups, state and attributes; containers stay the same.

    Identities kept as numbers (``id(p)`` in a set of those to be treated otherwise) are replaced as well.
    """
    if not others:
        return
    for optimizer in optimizers:
        for name, value in vars(optimizer).items():
            _replace(value, others, 1 if name == "state" else _DEPTH)


def _replace(holder: Any, others: Mapping[int, Tensor], depth: int) -> None:
    if isinstance(holder, list):
        for index, item in enumerate(holder):
            new = _other(item, others)
            if new is not item:
                holder[index] = new
    elif isinstance(holder, dict):
        # anew and in the same order: state is saved in the order of its keys
        pairs = [(_other(key, others), value) for key, value in holder.items()]
        if any(new is not old for (new, _), old in zip(pairs, holder, strict=True)):
            holder.clear()
            holder.update(pairs)
    elif isinstance(holder, set):
        for item in tuple(holder):
            new = _other(item, others)
            if new is not item:
                holder.remove(item)
                holder.add(new)
    if depth > 1:
        for item in _items(holder):
            if isinstance(item, (list, tuple, dict, set)):
                _replace(item, others, depth - 1)


def _other(item: Any, others: Mapping[int, Tensor]) -> Any:
    if isinstance(item, Tensor):
        return others.get(id(item), item)
    if type(item) is int and item in others:
        return id(others[item])
    return item


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()
