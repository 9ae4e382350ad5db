"""The operation probe: sees every operation of torch for a few steps, forward and backward, and then sleeps.

A dispatch mode stands below autograd: what it sees are the operations that run, with their tensors. It passes
everything through; instruments look at each operation after it has run. The mode is entered only where no
other one is active, and left only where none was entered since, so that the stack of modes stays in order,
and both not inside `Scopes`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from precdoctor.observe.probe.operations import (
    Instrument,
    Operation,
    Persistent,
    is_capturing,
)
from precdoctor.observe.probe.scopes import Scopes

#: optimizer steps at whose beginning the probe is awake for the first time, and those at which it wakes again
_FIRST_STEPS = 3
_WAKES = frozenset(int(step * 10**power) for power in (1, 2, 3, 4, 5) for step in (1, 1.5, 2, 3, 5, 7)) | {5}
#: steps for which it stays awake then: two, so that what changes from one to the next is seen
_AWAKE = 2
#: operations looked at in one step; a longer step is seen up to there
_MOST_OPERATIONS = 100_000
#: operations of one optimizer's step that those look at who look inside
_MOST_INSIDE = 2_000
#: times that it wakes for each kind of event, and operations that it looks at then within one step
_MOST_ROUSED, _ROUSED_OPERATIONS = 3, 20_000
#: operations that are looked at in the rest of a step, since they write into what is followed
_MOST_PERSISTENT = 10_000
#: steps in which code that is not part of each step is to be seen, and places of such code
_LOOKS, _MOST_PLACES = 2, 16
#: operations after which the time is looked at within a step
_CHECKED = 1_000


class OperationProbe:
    """Awake during the first steps and now and then later; `step_begins` and `step_ended` tell it when.

    ``share`` is the part of the run's wall time, beyond ``seconds`` of it, that looking may take. ``at`` is
    a step that is looked at whatever the time; with ``always`` all are.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        *,
        share: float = 0.5,
        seconds: float = 3.0,
        at: int | None = None,
        always: bool = False,
    ) -> None:
        self.instruments = tuple(instruments)
        #: what could not be seen and why, in sentences
        self.limits: dict[str, None] = {}
        #: those that look at the step at hand as well, and the operations of it that they have seen
        self._inside: tuple[Instrument, ...] = ()
        self._inside_operations = 0
        #: wall seconds spent looking
        self.seconds = 0.0
        self._share, self._grace = share, seconds
        self._at, self._always = at, always
        #: told of each frame that is about to enter inference mode
        self.on_inference: Callable[[FrameType], None] = lambda _: None
        #: told of each backward pass of the thread that trains: what of, seeds, inputs, and what it returned
        self.on_backward: Callable[[Any, Any, Any, Any], object] = lambda *_: None
        self._scopes = Scopes(self._settle, lambda frame: self.on_inference(frame), self._passed)
        #: the mode of each thread that entered one
        self._local = _Entered()
        #: the thread whose operations are looked at: that which trains, or attached
        self._home = 0
        self._dormant, self._ended = True, False
        self._in_step = self._seen_any = False
        self._paused = 0
        self._roused = Counter[str]()
        #: steps in which code at a place was looked at
        self._reached: dict[Hashable, set[int]] = {}
        #: operations looked at in this step; it woke in the middle of it, or has looked for too long
        self._operations, self._woken, self._tired = 0, False, False
        #: operations looked at in the rest of this step
        self._persisted = 0
        self._steps = 0
        self._until = _FIRST_STEPS
        self._start = time.perf_counter()

    @property
    def looked(self) -> bool:
        """Tell whether operations of any step were looked at."""
        return self._seen_any

    @property
    def awake(self) -> bool:
        """Tell whether operations of this thread are looked at now."""
        return not (self._dormant or self._ended or self._in_step or self._paused) and self._at_home

    @property
    def _at_home(self) -> bool:
        return threading.get_ident() == self._home

    # ------------------------------------------------------------------ life

    def attach(self) -> None:
        """Begin to look."""
        self._start, self._home = time.perf_counter(), threading.get_ident()
        self._scopes.attach()
        self._wake()

    def compiling(self) -> None:
        """End looking for good: what runs inside a compiled graph does not show."""
        if (
            self._ended or self._in_step or self._paused
        ):  # an optimizer's own graph; our trial of an optimizer
            return
        self.limits["operations are not looked at once a program has compiled a graph"] = None
        self._ended = True  # the mode is left after the step: now is the middle of a compilation

    def detach(self) -> None:
        """Look no more."""
        self._ended = True
        self._sleep()

    def pause(self) -> None:
        """Look at nothing until `resume`; may be nested."""
        if self._at_home:
            self._paused += 1

    def resume(self) -> None:
        """Undo one `pause`."""
        if self._at_home:
            self._paused -= 1

    def _wake(self) -> None:
        self._dormant = False
        self._settle()

    def _sleep(self) -> None:
        if not self._dormant:
            self._each(lambda instrument: instrument.fall_asleep())
        self._dormant = True
        self._settle()

    def _settle(self) -> None:
        """Enter the mode or leave it, as is wanted, as soon as it is safe; a mode that stays looks away."""
        if self._scopes.inside:
            return
        mine, depth = self._local, torch._C._len_torch_dispatch_stack()
        if self._dormant or not self._at_home:
            # another mode may have been entered after it
            if mine.mode is not None and depth and torch._C._get_dispatch_stack_at(depth - 1) is mine.mode:
                mine.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
                mine.mode = None
        elif mine.mode is None and not depth:
            mine.mode = _Mode(self)
            mine.mode.__enter__()  # type: ignore[no-untyped-call]
        if self._ended and mine.mode is None:
            self._scopes.detach()

    def rouse(self, event: str) -> None:
        """Wake now, for this step and those after it: something has happened. A few times, for a while."""
        if self._ended or not self._at_home or not self._dormant or self._roused[event] >= _MOST_ROUSED:
            return
        self._roused[event] += 1
        self._until = max(self._until, self._steps + 1 + _AWAKE)
        # steps that are left out again and again never end
        self._operations, self._woken = 0, True
        if not self._in_step and not self._overspent():
            self._wake()

    def _passed(self, args: tuple[Any, ...], result: Any) -> None:
        if self._ended or self._in_step or self._paused or not self._at_home:
            return
        if len(args) > 4:
            self.on_backward(args[0], args[1], args[4], result)

    def reaches(self, place: Hashable) -> None:
        """Take note that code at a place is about to run; it wakes if that was seen in too few steps."""
        if self._ended or self._in_step or self._paused or not self._at_home:
            return
        if place not in self._reached and len(self._reached) >= _MOST_PLACES:
            return
        looks = self._reached.setdefault(place, set())
        if len(looks) < _LOOKS:
            self.rouse(f"code at {place}")
            if not self._dormant:
                looks.add(self._steps)

    # ------------------------------------------------------------------ told by the step monitor

    def step_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Take note that an optimizer begins a step."""
        if not self._at_home:
            if self._steps or self._scopes.inside:  # one of several models; a step inside backward
                return
            self._home = threading.get_ident()
        if self.awake:
            self._each(lambda instrument: instrument.step_begins(optimizer, self._steps))
            self._inside = tuple(i for i in self.instruments if getattr(i, "looks_inside", False))
        self._in_step = True  # what an optimizer does inside is no matter of the forward pass

    def step_ended(self, steps: int) -> None:
        """Take note that a step has ended; ``steps`` were made in all."""
        if not (self._at_home or self._scopes.inside):
            return
        self._in_step, self._inside, self._inside_operations = False, (), 0
        if self._ended:
            self._sleep()
        if steps == self._steps or self._ended:
            return
        self._steps, self._operations, self._woken, self._tired = steps, 0, False, False
        self._persisted = 0
        if steps in _WAKES or self._is_wanted(steps):
            self._until = max(self._until, steps + _AWAKE)
        if steps < self._until and (self._is_wanted(steps) or not self._overspent()):
            self._wake()
        else:
            self._sleep()

    def _is_wanted(self, steps: int) -> bool:
        """Tell whether somebody asked for a look at a step, and so at what leads to it."""
        return self._always or (self._at is not None and self._at - 1 <= steps <= self._at)

    def _has_seen_enough(self) -> bool:
        """Tell whether the rest of this step is left out, for its length or for the time it takes."""
        if self._is_wanted(self._steps):
            return False
        self._operations += 1
        self._tired |= self._operations % _CHECKED == 0 and self._overspent()
        most = _ROUSED_OPERATIONS if self._woken else _MOST_OPERATIONS
        if self._operations > most:
            self.limits[f"of steps with over {most:,} operations the rest is not looked at"] = None
        return self._tired or self._operations > most

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
        self._seen_any = True
        schema = getattr(func, "_schema", None)
        writes = schema is not None and schema.is_mutable
        looking = self.instruments
        if self._has_seen_enough():
            looking = self._persistent(func, args) if writes else ()
            if not looking:
                return func(*args, **kwargs)
        self._paused += 1
        try:
            if writes:
                self._each(lambda instrument: instrument.before(func, args, kwargs), looking)
            ran = time.perf_counter()
            out = func(*args, **kwargs)
            done = time.perf_counter()
            operation = Operation(
                func,
                args,
                kwargs,
                out,
                step=self._steps,
                backward=torch._C._current_graph_task_id() != -1,
                graded=torch.is_grad_enabled(),
                frame=frame,
            )
            self._each(lambda instrument: instrument.after(operation), looking)
            self.seconds += time.perf_counter() - done + ran - start
        finally:
            self._paused -= 1
        return out

    def _persistent(self, func: Any, args: tuple[Any, ...]) -> tuple[Instrument, ...]:
        """Return the instruments that go on with what an operation writes into, in the rest of a step."""
        if self._persisted >= _MOST_PERSISTENT:
            return ()
        found = tuple(i for i in self.instruments if isinstance(i, Persistent) and i.persists(func, args))
        self._persisted += bool(found)
        return found

    @property
    def looks_inside(self) -> bool:
        """Tell whether operations of the optimizer's step at hand are looked at."""
        more = self._inside_operations < _MOST_INSIDE and not self._paused
        return bool(self._inside) and self._in_step and more and self._at_home

    def run_inside(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Any:
        """Run an operation of an optimizer's step, and let those look at it that want to."""
        out = func(*args, **kwargs)
        start = time.perf_counter()
        self._inside_operations += 1
        operation = Operation(
            func,
            args,
            kwargs,
            out,
            step=self._steps,
            backward=torch._C._current_graph_task_id() != -1,
            graded=torch.is_grad_enabled(),
            frame=frame,
        )
        inside = self._inside

        def look(instrument: Instrument) -> None:
            if instrument in inside:
                instrument.after(operation)

        self._each(look)
        self.seconds += time.perf_counter() - start
        return out

    def _each(self, act: Callable[[Instrument], None], looking: Sequence[Instrument] | None = None) -> None:
        """Let instruments (all) do something; whatever goes wrong with that is no matter of the run.

        One that fails looks no more, nor do those after it, which may rely on it.
        """
        self.pause()  # our own operations are not the run's
        try:
            with torch.no_grad():
                for index, instrument in enumerate(self.instruments):
                    if looking is not None and instrument not in looking:
                        continue
                    try:
                        act(instrument)
                    except Exception as error:
                        why = f"{type(instrument).__name__}, {type(error).__name__}: {error}"
                        self.limits[f"looking at operations failed ({why})"] = None
                        self.instruments = self.instruments[:index]
                        break
        finally:
            self.resume()


class _Entered(threading.local):
    """What belongs to one thread."""

    def __init__(self) -> None:
        self.mode: _Mode | None = None


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    supports_higher_order_operators = True

    def __init__(self, probe: OperationProbe) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._probe, self._process = probe, os.getpid()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper that tells dynamo to skip would import all of it at the first operation

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # torch.compile compiles as if the mode was not there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # a forked worker of a data loader inherits the mode; a look at values would spoil a CUDA graph
        inside = self._probe.looks_inside
        if not (self._probe.awake or inside) or os.getpid() != self._process or is_capturing():
            return func(*args, **kwargs)
        if inside:
            return self._probe.run_inside(func, args, kwargs, sys._getframe(1))
        return self._probe.run(func, args, kwargs, sys._getframe(1))
