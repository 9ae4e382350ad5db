"""Where tensors come from: the line that gave them a low format; whether gradients or weights went into
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.lineage.lineage import Lineage
from precdoctor.observe.lineage.made import Memory, Root, storage_key
from precdoctor.observe.probe.operations import Operation
from precdoctor.observe.watch import inside, is_plain

LOW = (torch.float16, torch.bfloat16)
#: makers of tensors that take their format from the default where none is given
_MAKERS = frozenset(
    f"aten::{name}" for name in ("zeros", "ones", "empty", "full", "rand", "randn", "lift_fresh")
)
#: tensors that are remembered, beyond which those that are gone are looked for
_MANY = 4096


@dataclass(slots=True)
class Origin:
    """The lines that a tensor in a low format comes from."""

    memory: Memory
    #: the line that gave it, or what it was made like, the format
    format: Spot | None
    #: the line that made it
    made: Spot | None
    #: no format was named there: it is the default one
    default: bool = False
    #: optimizer steps made before
    step: int = 0


class Origins:
    """Remembers the origin of tensors in 16-bit formats that no gradient flows through."""

    def __init__(self, code: UserCode) -> None:
        self._code = code
        self._known: dict[int, Origin] = {}
        self._limit = _MANY

    def note(self, operation: Operation) -> None:
        """Take note of what an operation makes."""
        for out in operation.outputs:
            if out.dtype in LOW and is_plain(out):
                self._note(operation, out)

    def _note(self, operation: Operation, out: Tensor) -> None:
        inputs, key = operation.inputs, storage_key(out)
        known = self._known.get(key)
        if any(storage_key(t) == key for t in inputs if is_plain(t)):
            if known is not None and not known.memory.gone:
                return  # a view, or written in place
        elif operation.graded and any(t.requires_grad for t in inputs):
            return
        if len(self._known) >= self._limit:
            self.forget()
            self._limit = max(_MANY, 2 * len(self._known))
        spot = self._code.innermost(operation.frame)[0]
        like = next((o for t in inputs if (o := self.of(t)) is not None), None)
        unnamed = operation.name in _MAKERS and operation.kwargs.get("dtype") is None
        default = unnamed and torch.get_default_dtype() == out.dtype
        self._known[key] = Origin(
            memory=Memory(out),
            format=spot if like is None else like.format,
            made=spot,
            default=default if like is None else like.default,
            step=operation.step,
        )

    def of(self, tensor: Tensor) -> Origin | None:
        """Return the origin of a tensor, None where it was not seen."""
        return self.at(storage_key(tensor)) if tensor.dtype in LOW and is_plain(tensor) else None

    def at(self, key: int) -> Origin | None:
        """Return the origin of what lies in a memory."""
        known = self._known.get(key)
        return known if known is not None and not known.memory.gone else None

    def forget(self) -> None:
        """Forget what is gone."""
        for key in [key for key, origin in self._known.items() if origin.memory.gone]:
            del self._known[key]


class Marks:
    """Remembers which tensors are gradients, or made from them, and which are made from weights alone."""

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage
        self._gradients: dict[int, Memory] = {}
        self._weights: dict[int, Memory] = {}
        #: tensors of which `torch.func` has taken a gradient
        self._functional: dict[int, Memory] = {}
        #: the parameter whose gradient lies in a memory
        self._owners: dict[int, Root] = {}
        self._limit = _MANY

    def note(self, operation: Operation) -> None:
        """Pass on to what an operation makes what went into it."""
        inputs = [t for t in operation.inputs if t.is_floating_point() and is_plain(t)]
        if not inputs or (operation.graded and any(t.requires_grad for t in inputs)):
            return
        keys = [storage_key(t) for t in inputs]
        gradient = any(key in self._gradients for key in keys)
        if not gradient and not all(map(self.is_weights, inputs)):
            return
        table = self._gradients if gradient else self._weights
        if len(table) >= self._limit:
            self.forget()
            self._limit = max(_MANY, 2 * len(table))
        for out in operation.outputs:
            if is_plain(out) and storage_key(out) not in keys:
                table[storage_key(out)] = Memory(out)

    def find_gradients(self) -> None:
        """Look for the gradients of all parameters; to be called after a backward pass."""
        self._owners.clear()
        for root in self._lineage.roots():
            parameter = root.alive()
            gradient = parameter.grad if parameter is not None else None
            if gradient is not None and is_plain(gradient):
                key = storage_key(gradient)
                self._owners[key] = root
                if key not in self._gradients or self._gradients[key].gone:
                    self._gradients[key] = Memory(gradient)

    def gradients(self, inputs: Sequence[Any], gradients: Sequence[Tensor | None]) -> None:
        """Take note of the gradients of some tensors that a backward pass returned: those of parameters.

        `torch.func` takes them of any tensors, which it wraps: these are parameters too.
        """
        for tensor, gradient in zip(inputs, gradients, strict=False):
            if not isinstance(tensor, Tensor) or gradient is None:
                continue
            parameter, gradient = inside(tensor), inside(gradient)
            functional = parameter is not tensor and is_plain(parameter)
            is_parameter = functional or (tensor.is_leaf and tensor.requires_grad)
            if is_parameter and is_plain(gradient) and not gradient.requires_grad:
                self._gradients[storage_key(gradient)] = Memory(gradient)
                if functional:
                    self._functional[storage_key(parameter)] = Memory(parameter)

    def is_functional(self, tensor: Tensor) -> bool:
        """Tell whether `torch.func` has taken a gradient of a tensor."""
        known = self._functional.get(storage_key(tensor))
        return known is not None and not known.gone

    def owner(self, key: int) -> Root | None:
        """Return the parameter whose gradient lies in a memory, as of the last backward pass."""
        return self._owners.get(key)

    def is_gradient(self, tensor: Tensor) -> bool:
        """Tell whether gradients went into a tensor."""
        known = self._gradients.get(storage_key(tensor))
        return known is not None and not known.gone

    def is_weights(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a trained weight, or made from such alone."""
        known = self._weights.get(storage_key(tensor))
        return (known is not None and not known.gone) or self._lineage.made(tensor) is not None

    def forget(self) -> None:
        """Forget what is gone."""
        for table in (self._gradients, self._weights, self._functional):
            for key in [key for key, memory in table.items() if memory.gone]:
                del table[key]
