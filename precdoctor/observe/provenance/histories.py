"""What is known of live parameters and optimizers, found by identity and without keeping them alive.

No weak reference to a tensor is held: torch refuses to swap tensors that have one.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from precdoctor.observe.frames import Spot


class Change(NamedTuple):
    """A change of a parameter's format: formats, how it came about, and where."""

    before: str
    after: str
    how: str
    spot: Spot | None


@dataclass(slots=True)
class ParameterHistory:
    """What is known of one parameter."""

    created: Spot | None
    #: position in the order of all constructions of the process
    number: int
    dtype: torch.dtype
    cast: Change | None = None
    #: where it took the place of another in a module
    replaced: Spot | None = None
    #: the (module, name) pairs it was registered under: proof that an id still means this parameter
    homes: list[tuple[weakref.ref[nn.Module], str]] = field(default_factory=list)


@dataclass(slots=True)
class OptimizerHistory:
    """What is known of one optimizer."""

    optimizer: weakref.ref[torch.optim.Optimizer]
    number: int
    spot: Spot | None
    groups: list[Spot | None] = field(default_factory=list)
    #: histories of the parameters it holds, by id
    held: dict[int, ParameterHistory] = field(default_factory=dict)


class Histories:
    """Histories by object; an object that took the address of a dead one has none."""

    def __init__(self) -> None:
        self._parameters: dict[int, ParameterHistory] = {}
        self._optimizers: dict[int, OptimizerHistory] = {}

    def remember(self, parameter: Tensor, history: ParameterHistory) -> None:
        """Keep the history of a parameter that has, or is about to get, the last of its homes."""
        self._parameters[id(parameter)] = history

    def of(self, parameter: Tensor) -> ParameterHistory | None:
        """Return the history of a live parameter that a live module or optimizer holds."""
        history = self._parameters.get(id(parameter))
        for reference, name in history.homes if history is not None else ():
            module = reference()
            if module is not None and module._parameters.get(name) is parameter:
                return history
        for known in self._optimizers.values():
            history, optimizer = known.held.get(id(parameter)), known.optimizer()
            if history is not None and optimizer is not None:
                groups = optimizer.param_groups
                if any(held is parameter for group in groups for held in group["params"]):
                    return history
        return None

    def construct(self, optimizer: torch.optim.Optimizer, number: int, spot: Spot | None) -> None:
        """Begin the history of an optimizer."""
        self._optimizers[id(optimizer)] = OptimizerHistory(weakref.ref(optimizer), number, spot)

    def of_optimizer(self, optimizer: torch.optim.Optimizer) -> OptimizerHistory | None:
        """Return the history of a live optimizer."""
        known = self._optimizers.get(id(optimizer))
        return known if known is not None and known.optimizer() is optimizer else None
