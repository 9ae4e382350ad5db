"""The operation probe: sees every operation of torch for a few steps, forward and backward, and then sleeps.

A dispatch mode stands below autograd: what it sees are the operations that run, with their tensors. It passes
everything through; instruments look at each operation after it has run. The mode is entered only where no
other one is active, and left only where none was entered since, so that the stack of modes stays in order.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: optimizer steps at whose beginning the probe is awake for the first time, and those at which it wakes again
_FIRST_STEPS = 3
_WAKES = frozenset(int(step * 10**power) for power in (1, 2, 3, 4, 5) for step in (1, 1.5, 2, 3, 5, 7)) | {5}
#: steps for which it stays awake then: two, so that what changes from one to the next is seen
_AWAKE = 2
#: operations looked at in one step; a longer step is seen up to there
_MOST_OPERATIONS = 100_000


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


class OperationProbe:
    """Awake during the first steps and now and then later; `step_begins` and `step_ended` tell it when.

    ``share`` is the part of the run's wall time, beyond ``seconds`` of it, that looking may take.
    """

    def __init__(
        self, instruments: Sequence[Instrument], *, share: float = 0.5, seconds: float = 3.0
    ) -> None:
        self.instruments = tuple(instruments)
        #: what could not be seen and why, in sentences
        self.limits: dict[str, None] = {}
        #: wall seconds spent looking
        self.seconds = 0.0
        self._share, self._grace = share, seconds
        self._mode = _Mode(self)
        self._entered = self._dormant = self._ended = False
        self._in_step = self._seen_any = False
        self._paused = 0
        self._steps = self._operations = 0
        self._until = _FIRST_STEPS
        self._start = time.perf_counter()

    @property
    def looked(self) -> bool:
        """Tell whether operations of any step were looked at."""
        return self._seen_any

    @property
    def awake(self) -> bool:
        """Tell whether operations are looked at now."""
        return self._entered and not (self._dormant or self._in_step or self._paused)

    # ------------------------------------------------------------------ life

    def attach(self) -> None:
        """Begin to look."""
        self._start = time.perf_counter()
        self._wake()

    def compiling(self) -> None:
        """End looking for good: a graph compiled under a mode is another one."""
        self.stop("operations are not looked at in programs that call torch.compile")

    def detach(self) -> None:
        """Look no more."""
        self._ended = True
        self._sleep()

    def stop(self, why: str) -> None:
        """End looking for good, and say why."""
        if not self._ended:
            self.limits[why] = None
            self.detach()

    def pause(self) -> None:
        """Look at nothing until `resume`; may be nested."""
        self._paused += 1

    def resume(self) -> None:
        """Undo one `pause`."""
        self._paused -= 1

    def _wake(self) -> None:
        if self._ended:
            return
        self._dormant = False
        if not self._entered and torch._C._len_torch_dispatch_stack() == 0:
            self._mode.__enter__()  # type: ignore[no-untyped-call]
            self._entered = True

    def _sleep(self) -> None:
        """Leave the mode, or only look away where another was entered after it."""
        if not self._dormant:
            for instrument in self.instruments:
                self._try(instrument.fall_asleep)
        self._dormant = True
        depth = torch._C._len_torch_dispatch_stack()
        if self._entered and depth and torch._C._get_dispatch_stack_at(depth - 1) is self._mode:
            self._mode.__exit__(None, None, None)
            self._entered = False

    # ------------------------------------------------------------------ told by the step monitor

    def step_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Take note that an optimizer begins a step."""
        if self.awake:
            for instrument in self.instruments:
                self._try(lambda i=instrument: i.step_begins(optimizer, self._steps))  # type: ignore[misc]
        self._in_step = True  # what an optimizer does inside is no matter of the forward pass

    def step_ended(self, steps: int) -> None:
        """Take note that a step has ended; ``steps`` were made in all."""
        self._in_step = False
        if steps == self._steps or self._ended:
            return
        self._steps, self._operations = steps, 0
        if steps in _WAKES:
            self._until = max(self._until, steps + _AWAKE)
        if steps < self._until and not self._overspent():
            self._wake()
        elif self._entered:
            self._sleep()

    def _overspent(self) -> bool:
        elapsed = time.perf_counter() - self._start
        if self.seconds <= self._grace + self._share * (elapsed - self.seconds):
            return False
        self.limits["operations were looked at in fewer steps, to keep the time that takes within bounds"] = (
            None
        )
        return True

    # ------------------------------------------------------------------ looking

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Any:
        """Run an operation and look at it."""
        start = time.perf_counter()
        self._operations += 1
        self._seen_any = True
        if self._operations > _MOST_OPERATIONS:
            self.limits[f"of steps with over {_MOST_OPERATIONS:,} operations the rest is not looked at"] = (
                None
            )
            self._dormant = True
            return func(*args, **kwargs)
        self._paused += 1
        try:
            schema = getattr(func, "_schema", None)
            if schema is not None and schema.is_mutable:
                for instrument in self.instruments:
                    self._try(lambda i=instrument: i.before(func, args, kwargs))  # type: ignore[misc]
            ran = time.perf_counter()
            out = func(*args, **kwargs)
            done = time.perf_counter()
            backward = torch._C._current_graph_task_id() != -1
            operation = Operation(
                func,
                args,
                kwargs,
                out,
                step=self._steps,
                backward=backward,
                graded=torch.is_grad_enabled(),
                frame=frame,
            )
            for instrument in self.instruments:
                self._try(lambda i=instrument: i.after(operation))  # type: ignore[misc]
            self.seconds += time.perf_counter() - done + ran - start
        finally:
            self._paused -= 1
        return out

    def _try(self, act: Callable[[], None]) -> None:
        """Do something of ours; whatever goes wrong with that is no matter of the run."""
        self._paused += 1  # our own operations are not the run's
        try:
            with torch.no_grad():
                act()
        except Exception as error:
            self._ended = self._dormant = True
            self.limits[f"looking at operations failed ({type(error).__name__}: {error})"] = None
        finally:
            self._paused -= 1


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    supports_higher_order_operators = True

    def __init__(self, probe: OperationProbe) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._probe, self._process = probe, os.getpid()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper that tells dynamo to skip would import all of it at the first operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # a forked worker of a data loader inherits the mode
        if not self._probe.awake or os.getpid() != self._process:
            return func(*args, **kwargs)
        return self._probe.run(func, args, kwargs, sys._getframe(1))


def tensors_in(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values, and those in lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)
