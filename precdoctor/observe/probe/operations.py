"""An operation of torch as the operation probe sees it, and what looks at it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


class Operation:
    """One operation that has run."""

    __slots__ = ("args", "backward", "frame", "func", "graded", "kwargs", "out", "step")

    def __init__(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        *,
        step: int,
        backward: bool,
        graded: bool,
        frame: FrameType,
    ) -> None:
        self.func, self.args, self.kwargs, self.out = func, args, kwargs, out
        #: optimizer steps made before it
        self.step = step
        #: it belongs to a backward pass
        self.backward = backward
        #: autograd records: no ``no_grad``, and not the inside of a custom function
        self.graded = graded
        #: the frame that called it; valid only while it is looked at
        self.frame = frame

    @property
    def name(self) -> str:
        """Return the operation's name without its overload: "aten::mm"; empty for higher-order ones."""
        schema = getattr(self.func, "_schema", None)
        return str(schema.name) if schema is not None else ""

    @property
    def inputs(self) -> list[Tensor]:
        """Return the tensors among the arguments, in order, those in lists too."""
        return list(tensors_in((*self.args, *self.kwargs.values())))

    @property
    def outputs(self) -> list[Tensor]:
        """Return the tensors that came out."""
        return list(tensors_in((self.out,)))


class Instrument(Protocol):
    """Looks at operations while the probe is awake."""

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at an operation that is about to write into one of its arguments."""

    def after(self, operation: Operation) -> None:
        """Look at an operation that has run."""

    def step_begins(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Look at what has happened since the last step; ``step`` counts those that were made."""

    def fall_asleep(self) -> None:
        """Let go of what need not be kept while nothing is seen."""


@runtime_checkable
class Persistent(Protocol):
    """An instrument that goes on looking at a few operations where the rest of a long step is left out."""

    def persists(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Tell whether an operation that is about to write concerns what is followed; asked very often."""


def is_capturing() -> bool:
    """Tell whether operations are captured in a CUDA graph now, rather than run."""
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()


def is_transformed() -> bool:
    """Tell whether tensors stand for others now: inside ``torch.func``'s ``vmap`` or ``grad``."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def tensors_in(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values, and those in lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)
