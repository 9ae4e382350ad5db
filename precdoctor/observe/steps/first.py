"""The state of a toy parameter before its first step, for optimizers whose constructor makes it.

Most optimizers make the state of a parameter in its first step, and a toy begins with none. Some (Adagrad,
and many that people write themselves) make it when they are constructed; a toy needs the same then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from precdoctor.observe.steps.twin import CannotReplay, copied_state, step, twin

#: parameters of a group that are looked at, to tell copies of the weights from constants
_MOST = 64


def first_state(optimizer: torch.optim.Optimizer, group: int, toy: Tensor) -> dict[str, Any]:
    """Return the state with which ``toy`` begins; empty where the optimizer makes it in the first step.

    Raises `CannotReplay` where the state is neither constant nor a copy of the weights.
    """
    held = [(p, s) for p in optimizer.param_groups[group]["params"] if (s := optimizer.state.get(p))][:_MOST]
    if not held or _needs_none(optimizer, group):
        return {}
    return {name: _first(name, [(p, s[name]) for p, s in held if name in s], toy) for name in held[0][1]}


def _needs_none(optimizer: torch.optim.Optimizer, group: int) -> bool:
    """Tell whether a step makes the state that it does not find: this one was only resumed."""
    toy = nn.Parameter(torch.ones(2, dtype=torch.float64))
    toy.grad = torch.ones_like(toy)
    try:
        step(twin(optimizer, group, [toy], [{}]))
    except CannotReplay:
        return False
    return True


def _first(name: str, held: Sequence[tuple[Tensor, Any]], toy: Tensor) -> Any:
    sized = [(p, v) for p, v in held if p.ndim] or held  # beside a single number a counter looks like state
    tensors = [(p, v) for p, v in sized if isinstance(v, Tensor) and v.shape == p.shape]
    if not tensors:
        value = sized[0][1]
        if isinstance(value, Tensor) and value.numel() != 1:
            raise CannotReplay(f"its state {name!r} has another shape than the parameter")
        return copied_state(value)
    dtype = tensors[0][1].dtype
    telling = [(p, v) for p, v in tensors if not _is_constant(p)]
    if telling and all(torch.equal(v, p.detach().to(v.dtype)) for p, v in telling):
        return toy.detach().to(dtype, copy=True)  # a master of its own
    if all(_is_constant(v) for _, v in tensors):
        return torch.full(toy.shape, float(tensors[0][1].reshape(-1)[:1].sum()), dtype=dtype)
    raise CannotReplay(f"its constructor made the state {name!r}, whose beginning is not known")


def _is_constant(tensor: Tensor) -> bool:
    return bool((tensor.detach() == tensor.detach().reshape(-1)[:1]).all())
