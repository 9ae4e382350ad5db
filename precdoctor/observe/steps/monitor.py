"""The step monitor: sees every optimizer step of the process through torch's global hooks."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import (
    _global_optimizer_pre_hooks,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from precdoctor.evidence import Bench
from precdoctor.formats import FormatError
from precdoctor.numerics import format_of
from precdoctor.observe.counters import Counters
from precdoctor.observe.probe.operations import is_capturing
from precdoctor.observe.probe.probe import OperationProbe
from precdoctor.observe.steps.bench import bench, decay_setting, is_elementwise
from precdoctor.observe.steps.lane import WHOLE_BUDGET, Lane, Replay
from precdoctor.observe.steps.twin import CannotReplay, setting
from precdoctor.observe.steps.wrapping import keeper
from precdoctor.observe.watch import Watch, is_plain, limit_for

#: optimizers observed whatever the budget says: the first of the process
_FIRST = 8
#: lists of lanes kept: a sweep makes a new model, with lanes of its own, for every trial
_MOST_LANES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Which steps are observed in detail."""

    #: every N-th step, whatever it costs; None: as the budget allows
    every: int | None = None
    #: share of the process's CPU time that observing may take
    budget: float = 0.02
    #: the first steps, all observed
    dense: int = 10
    #: after those, at most one step in this many
    stride: int = 10

    def due(self, number: int, last: int | None, spent: float, elapsed: float) -> bool:
        """Tell whether step ``number`` (from 0) is observed; ``spent`` of ``elapsed`` seconds went here."""
        if self.every is not None:
            return number % self.every == 0
        if number < self.dense or last is None:
            return True
        return number - last >= self.stride and spent <= self.budget * elapsed


@dataclass(slots=True)
class Record:
    """What is kept of one optimizer."""

    optimizer: weakref.ref[torch.optim.Optimizer]
    type: str
    #: position in order of appearance
    index: int
    steps: int = 0
    observed: int = 0
    last: int | None = None
    #: lanes of each group, with the identity of the parameters they were built for
    lanes: dict[int, tuple[tuple[Any, ...], list[Lane]]] = field(default_factory=dict)
    benches: dict[tuple[int, str], Bench] = field(default_factory=dict)
    modes: dict[tuple[int, int], tuple[Replay, str, bool]] = field(default_factory=dict)
    #: first, last and largest learning rate, and the other settings, by group
    groups: dict[int, dict[str, Any]] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    #: observing it went wrong: from then on its steps are only counted
    failed: bool = False


@dataclass(slots=True)
class _Pending:
    record: Record
    #: the frame of torch's hook wrapper: tells a nested call from one that raised
    frame: FrameType
    nested: bool = False
    #: gradients are final only after the step: a closure computes them, or another hook changes them
    late: bool = False
    lanes: list[tuple[int, Lane]] = field(default_factory=list)


class _Thread(threading.local):
    """What belongs to one thread: each may train a model of its own."""

    def __init__(self) -> None:
        self.stack: list[_Pending] = []
        self.busy = False


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Leave the modes the run is in (autograd, inference mode, a default device) for a while.

    Tensors of ours made in inference mode could not be written to afterwards, and a default device would
    place them, and the toys of the bench test, anywhere.
    """
    with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunction():
        yield


class StepMonitor:
    """Observes optimizer steps; ``attach`` and ``detach`` put the hooks in place and take them away."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        watch: int | None = None,
        memory: float = 0.15,
        only: torch.optim.Optimizer | None = None,
        probe: OperationProbe | None = None,
        on_lane: Callable[[Lane], None],
        on_observation: Callable[[int], None],
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.schedule, self.watch, self.memory, self.only = schedule, watch, memory, only
        self._probe = probe
        self.records: list[Record] = []
        #: lanes by the parameters they observe: a new optimizer over the same parameters goes on with them
        self.lanes: dict[tuple[Any, ...], list[Lane]] = {}
        #: CPU seconds spent observing; CPU time is not inflated by whatever else the machine does
        self.seconds = 0.0
        #: of those, what trying optimizers on toys took: once, whatever the number of observed steps
        self._once = 0.0
        self._unseen: dict[str, None] = {}
        self._on_lane, self._on_observation, self._on_step = on_lane, on_observation, on_step
        self._by_id: dict[int, Record] = {}
        self._thread = _Thread()
        #: the thread whose step is being observed; those of others are only counted meanwhile
        self._observer: threading.Thread | None = None
        self._started = time.process_time()
        self._handles: list[Any] = []
        self._next_stretch = 1

    @property
    def limits(self) -> tuple[str, ...]:
        """Return what could not be observed and why, in sentences."""
        found = dict.fromkeys(self._unseen)
        for record in self.records:
            for _, lanes in record.lanes.values():
                for lane in lanes:
                    if lane.replay == "none" and lane.ledger.steps:
                        text = f"{record.type} can't be replayed ({lane.why_not}): judged by motion alone"
                        found[text] = None
        return tuple(found)

    @property
    def steps(self) -> int:
        """Return the number of steps of the optimizer that made most."""
        return max((r.steps for r in self.records), default=0)

    @property
    def observed(self) -> int:
        """Return the number of steps observed in detail, of the optimizer that was observed most."""
        return max((r.observed for r in self.records), default=0)

    @property
    def busy(self) -> bool:
        """Tell whether this thread does something of ours: a step then is none of the run's."""
        return self._thread.busy

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the optimizers that have made a step and are alive."""
        return [o for record in self.records if (o := record.optimizer()) is not None]

    @property
    def formats(self) -> dict[int, torch.dtype]:
        """Return the formats in which parameters were first stepped, by identity."""
        found: dict[int, torch.dtype] = {}
        for key in self.lanes:
            for identity, dtype, _ in key[1:]:
                found.setdefault(identity, dtype)
        return found

    def attach(self) -> None:
        """Register the hooks."""
        self._started = time.process_time()
        self._handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]

    def detach(self) -> None:
        """Remove the hooks; what was seen stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._thread, self._observer = _Thread(), None

    def quietly(self, act: Callable[[], None]) -> bool:
        """Do something, apart from the run; return False where it failed, which is no matter of the run."""
        mine, was_busy = self._thread, self._thread.busy
        mine.busy = True
        if self._probe is not None:
            self._probe.pause()
        try:
            with apart():
                act()
        except Exception as error:
            self._unseen[f"observing failed ({type(error).__name__}: {error})"] = None
            return False
        finally:
            mine.busy = was_busy
            if self._probe is not None:
                self._probe.resume()
        return True

    def record_of(self, optimizer: torch.optim.Optimizer) -> Record:
        """Return the record of an optimizer, made at its first step."""
        record = self._by_id.get(id(optimizer))
        if record is None or record.optimizer() is not optimizer:
            kind = type(optimizer)
            record = Record(
                weakref.ref(optimizer), f"{kind.__module__}.{kind.__qualname__}", len(self.records)
            )
            self.records.append(record)
            self._by_id[id(optimizer)] = record
        return record

    # ------------------------------------------------------------------ hooks

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():  # a step inside a compiled function is not ours to trace
            return
        mine = self._thread
        if mine.busy or (self.only is not None and optimizer is not self.only):
            return
        start = time.process_time()
        frame = sys._getframe(1)
        record = self.record_of(optimizer)
        closure = len(args) > 1 or kwargs.get("closure") is not None
        pending = _Pending(record, frame, late=closure or _has_hooks(optimizer))
        self._drop_stale(frame)
        pending.nested = any(p.record is record for p in mine.stack)
        mine.stack.append(pending)
        if self._probe is not None and not pending.nested:
            self._probe.step_begins(optimizer)
        spent = self.seconds - self._once
        due = self.schedule.due(record.steps, record.last, spent, start - self._started)
        if record.index >= _FIRST and self.schedule.every is None:  # one optimizer per task, or per parameter
            due = due and self.seconds <= self.schedule.budget * (start - self._started)
        if not due or pending.nested or record.failed or not self._may_observe():
            if record.counters.found and not pending.nested:
                self.quietly(lambda: record.counters.note(optimizer, record.steps))
            return

        def observe() -> None:
            self._snapshot(optimizer, pending)
            self._on_observation(record.observed)

        if not self.quietly(observe):
            record.failed, pending.lanes = True, []
        self.seconds += time.process_time() - start

    def _may_observe(self) -> bool:
        """Tell whether this thread may observe now, and take the place of the observer if so."""
        if is_capturing():
            self._unseen["steps captured in a CUDA graph are not observed"] = None
            return False
        observer = self._observer
        if observer is not None and observer is not threading.current_thread() and observer.is_alive():
            return False
        self._observer = threading.current_thread()
        return True

    def _drop_stale(self, frame: FrameType | None) -> None:
        """Forget steps that raised: their wrapper is no longer on the call stack."""
        mine = self._thread
        if not mine.stack:
            return
        alive = []
        while frame is not None:
            alive.append(frame)
            frame = frame.f_back
        mine.stack = [p for p in mine.stack if any(p.frame is f for f in alive)]

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        mine = self._thread
        if mine.busy or (self.only is not None and optimizer is not self.only):
            return
        frame = sys._getframe(1)
        while mine.stack and mine.stack[-1].frame is not frame:
            mine.stack.pop()
        if not mine.stack:  # attached in the middle of a step
            return
        pending = mine.stack.pop()
        if pending.nested:
            return
        record = pending.record
        record.steps += 1
        if pending.lanes:
            start = time.process_time()
            if not self.quietly(lambda: self._finish(optimizer, pending)):
                record.failed = True
            self.seconds += time.process_time() - start
        if not any(p.lanes for p in mine.stack) and self._observer is threading.current_thread():
            self._observer = None
        if self._probe is not None:
            self._probe.step_ended(self.steps)
        if self._on_step is not None:
            self._on_step(self.steps)

    # ------------------------------------------------------------------ observing

    def _snapshot(self, optimizer: torch.optim.Optimizer, pending: _Pending) -> None:
        pending.record.counters.note(optimizer, pending.record.steps)
        for index, group in enumerate(optimizer.param_groups):
            for lane in self._lanes_of(optimizer, pending.record, index, group):
                lane.snapshot(optimizer, pending.record.steps + 1, gradients=not pending.late)
                pending.lanes.append((index, lane))
            self._note_group(pending.record, index, group)

    def _finish(self, optimizer: torch.optim.Optimizer, pending: _Pending) -> None:
        record = pending.record
        record.observed += 1
        record.last = record.steps - 1
        for index, lane in pending.lanes:
            lane.finish(optimizer, index, record.steps, late=pending.late)
        # an optimizer around this one steps the same parameters: they have been seen
        mine = {id(p) for _, lane in pending.lanes for p in lane.alive() if p is not None}
        for outer in self._thread.stack:
            outer.lanes = [
                (i, lane)
                for i, lane in outer.lanes
                if not mine & {id(p) for p in lane.alive() if p is not None}
            ]
        if record.index == 0 and record.observed >= self._next_stretch:
            self.close_stretch()

    def close_stretch(self) -> None:
        """End a stretch of the timeline: the first ones are single steps, later ones ever longer."""
        for lanes in self.lanes.values():
            for lane in lanes:
                lane.ledger.close_stretch(self.steps)
        self._next_stretch = max(self._next_stretch + 1, int(self._next_stretch * 1.08))

    def _note_group(self, record: Record, index: int, group: dict[str, Any]) -> None:
        lr = setting(group.get("lr"))
        known = record.groups.setdefault(index, {"lr_first": lr, "lr_max": lr})
        known["lr_last"] = lr
        if lr is not None:
            known["lr_max"] = max(known["lr_max"] or 0.0, lr)
        known["weight_decay"] = setting(group.get("weight_decay")) or 0.0
        betas = group.get("betas")
        numbers = [setting(b) for b in betas] if isinstance(betas, (tuple, list)) else []
        known["betas"] = tuple(b for b in numbers if b is not None)
        known["eps"] = setting(group.get("eps"))
        known["tensors"] = len(group["params"])

    def _lanes_of(
        self, optimizer: torch.optim.Optimizer, record: Record, index: int, group: dict[str, Any]
    ) -> list[Lane]:
        key = (record.type, *((id(p), p.dtype, p.shape) for p in group["params"]))
        known = record.lanes.get(index)
        if known is not None and known[0] == key:
            return known[1]
        lanes = self.lanes.get(key)
        if lanes is None and len(self.lanes) >= _MOST_LANES:
            self._unseen[f"after {_MOST_LANES} parameter groups no further one is observed"] = None
            lanes = []
        elif lanes is None or any(p is None for lane in lanes for p in lane.alive()):
            start = time.process_time()
            lanes = self._built(optimizer, record, index, group["params"])
            self._once += time.process_time() - start
            self.lanes[key] = lanes
        record.lanes[index] = (key, lanes)
        return lanes

    def _built(
        self, optimizer: torch.optim.Optimizer, record: Record, index: int, parameters: list[Tensor]
    ) -> list[Lane]:
        watchable = []
        for position, parameter in enumerate(parameters):
            if is_plain(parameter) and parameter.is_floating_point() and _has_format(parameter.dtype):
                if parameter.numel():
                    watchable.append((position, parameter))
                continue
            kind = type(parameter).__name__
            self._unseen[f"{kind} parameters of {parameter.dtype} are not observed"] = None
        tensors = [p for group in optimizer.param_groups for p in group["params"]]
        limit = limit_for(
            [p.numel() for p in tensors], [p.element_size() for p in tensors], self.watch, self.memory
        )
        sorts: dict[tuple[Any, ...], list[tuple[int, Tensor]]] = {}
        for position, parameter in watchable:
            mode = self._mode(optimizer, record, index, parameter)
            sorts.setdefault((parameter.dtype, parameter.device, mode), []).append((position, parameter))
        lanes = []
        for (dtype, _, (replay, why_not, random)), found in sorts.items():
            positions, members = [i for i, _ in found], [p for _, p in found]
            watches = [Watch.of(p.numel(), limit) for p in members]
            low = dtype not in (torch.float32, torch.float64)
            decay = decay_setting(optimizer, index) if low else None
            lane = Lane(members, positions, watches, replay, why_not=why_not, random=random, decay=decay)
            lanes.append(lane)
            self._on_lane(lane)
            name = str(dtype).removeprefix("torch.")
            if low and (index, name) not in record.benches:
                largest = max(members, key=lambda p: p.ndim)
                record.benches[index, name] = bench(optimizer, index, dtype, max(largest.ndim, 1))
        return lanes

    def _mode(
        self, optimizer: torch.optim.Optimizer, record: Record, index: int, parameter: Tensor
    ) -> tuple[Replay, str, bool]:
        key = (index, parameter.ndim)
        if key not in record.modes:
            try:
                alone, random = is_elementwise(optimizer, index, parameter.ndim)
                record.modes[key] = ("elementwise" if alone else "whole tensor", "", random)
            except CannotReplay as error:
                record.modes[key] = ("none", str(error), False)
        if record.modes[key][0] == "whole tensor" and parameter.numel() > 8 * WHOLE_BUDGET:
            return "none", f"a tensor of {parameter.numel()} elements is too large to replay whole", False
        return record.modes[key]


def _has_format(dtype: torch.dtype) -> bool:
    try:
        format_of(dtype)
    except FormatError:
        return False
    return True


def _has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether hooks run between ours and the step: they may clip or change the gradients."""
    if isinstance(getattr(optimizer, "grad_scale", None), Tensor):
        return False  # a fused step divides the gradients themselves: read them before
    # a wrapper that stores the results leaves the gradients as they are
    own = len(optimizer._optimizer_step_pre_hooks) - (keeper(optimizer) is not None)
    return len(_global_optimizer_pre_hooks) > 1 or own > 0
