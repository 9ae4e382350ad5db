"""The Doctor: attach to a run, watch it, report. Also a context manager."""

from __future__ import annotations

import dataclasses
import datetime
import math
import platform
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from precdoctor.evidence import Backward, Cast, Evidence, Forward, Parameter, Place, Run
from precdoctor.observe import assemble
from precdoctor.observe.calls import Calls
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.graph import reach
from precdoctor.observe.instruments import Instruments
from precdoctor.observe.models import Usage
from precdoctor.observe.probe.compiling import CompileWatch
from precdoctor.observe.probe.evaluation import EvaluationWatch
from precdoctor.observe.probe.probe import OperationProbe
from precdoctor.observe.provenance.source import Source
from precdoctor.observe.registry import Registry
from precdoctor.observe.steps.lane import Lane
from precdoctor.observe.steps.monitor import Record, Schedule, StepMonitor, apart
from precdoctor.observe.steps.schedules import future, live_schedulers
from precdoctor.observe.steps.wrapping import inner
from precdoctor.observe.ties.watch import TieWatch
from precdoctor.observe.watch import is_plain

if TYPE_CHECKING:
    from precdoctor.observe.provenance.recorder import Provenance
    from precdoctor.report import Report

#: optimizer steps (observed ones) at which models, masters and orphans are looked at again
_LOOKS = frozenset((1, 2, 3, 5, 10, 30, 100, 300, 1000, 3000, 10_000))
#: looks at the same number of steps, for different optimizers: each walks over all objects of the process
_LOOKS_EACH = 4
#: backward passes whose graph is walked, and the last step in which one is
_WALKS, _WALK_STEPS = 8, 2
#: loss values kept
_LOSSES = 4096


class Doctor:
    """Watches training in this process and says whether precision is what ails it.

    ``with Doctor(model, optimizer) as doctor: train()`` and then ``doctor.report()``. Without arguments
    every optimizer of the process is watched and models are found by themselves. The run is not changed:
    weights, random numbers and output are bit-identical.

    ``every``: observe every N-th step; by default the first ten and then as often as ``budget`` (a share
    of CPU time) allows, at most every ``stride``-th. ``watch``: elements per tensor, 0 for all; by default
    as many as fit into ``memory`` (a share of the parameters' bytes). ``probe``: look at single operations
    in the first steps, in some later ones, and after ``look_at`` steps; with ``shadow`` in all, each beside
    the same in float64, however long that takes.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int | None = None,
        watch: int | None = None,
        budget: float = 0.02,
        stride: int = 10,
        memory: float = 0.15,
        probe: bool = False,
        shadow: bool = False,
        look_at: int | None = None,
        provenance: Provenance | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        if watch is not None and watch < 0:
            raise ValueError(f"watch must be 0 (all) or more, not {watch}")
        self._provenance, self._on_step = provenance, on_step
        code = provenance.code if provenance is not None else UserCode()
        self._instruments = Instruments(code, thorough=shadow)
        self._calls = Calls(code, lambda: self._monitor, self._is_looking, self._instruments, self._rouse)
        looking = (*self._instruments.all, *self._calls.instruments)
        self._probe = OperationProbe(looking, at=look_at, always=shadow) if probe or shadow else None
        self._monitor = StepMonitor(
            Schedule(every=every, budget=budget, stride=stride),
            watch=watch,
            memory=memory,
            only=None if optimizer is None else inner(optimizer),
            probe=self._probe,
            on_lane=self._on_lane,
            on_observation=self._on_observation,
            on_step=self._after_step,
        )
        self._registry = Registry(model, provenance)
        self._ties = TieWatch(code, provenance)
        self._usage = Usage(self._calls.called) if self._probe is not None else None
        self._compile = CompileWatch(self._on_compile)
        self._evaluation = EvaluationWatch(self._on_evaluation, code)
        if self._probe is not None:
            self._probe.on_inference = self._evaluation.entered
            passed = self._instruments.passed
            self._probe.on_backward = lambda *each: self._monitor.quietly(lambda: passed(*each))
        self._future: dict[int, dict[int, tuple[tuple[int, float], ...]]] = {}
        self._backward: Backward | None = None
        self._walks: list[tuple[bool, set[int], set[int], set[str]]] = []
        self._leaves: dict[int, weakref.ref[Tensor]] = {}
        self._backward_place: Place | None = None
        self._losses: list[tuple[int, Tensor]] = []
        #: optimizer steps made before the last backward pass; one came after another without a step between
        self._passed_at, self._accumulates = -1, False
        self._started_at = datetime.datetime.now().astimezone()
        self._start = self._end = time.perf_counter()
        self._attached = False
        #: the user's files on the call stack: searched for casts that nobody watched
        self._files: tuple[str, ...] = ()
        #: parameters were met that have not been looked at yet
        self._strangers = False
        self._looks: Counter[int] = Counter()

    # ------------------------------------------------------------------ life

    @classmethod
    def attach(
        cls, model: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None, **options: Any
    ) -> Doctor:
        """Return a Doctor that watches from now on, until ``detach``; options as for the class."""
        return cls(model, optimizer, **options).__enter__()

    def detach(self) -> None:
        """Stop watching; every hook is removed, what was seen stays."""
        if not self._attached:
            return
        self._attached = False
        self._end = time.perf_counter()
        self._monitor.detach()
        self._calls.detach()
        self._compile.detach()
        self._evaluation.detach()
        self._ties.homes.detach()
        if self._usage is not None:
            self._usage.stop()
        if self._probe is not None:
            self._probe.detach()
        self.look()

    def __enter__(self) -> Doctor:
        if self._attached:
            raise RuntimeError("this Doctor is attached already")
        self._attached = True
        if self._provenance is None:
            self._files = _user_files(sys._getframe(1))
        self._started_at = datetime.datetime.now().astimezone()
        self._start = time.perf_counter()
        self._monitor.attach()
        self._calls.attach()
        self._ties.homes.attach()
        if self._usage is not None and self._probe is not None:
            self._usage.start()
            self._probe.attach()
            self._compile.attach()
            self._evaluation.attach()
        if self._provenance is not None:
            self._provenance.on_backward(self._on_backward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    # ------------------------------------------------------------------ while it runs

    def _is_looking(self) -> bool:
        return self._probe is not None and self._probe.awake

    def _rouse(self, event: str) -> None:
        if self._probe is not None:
            self._probe.rouse(event)

    def _on_compile(self) -> None:
        if self._usage is not None and self._probe is not None:
            self._usage.compiling()
            self._probe.compiling()

    def _on_evaluation(self, spot: Spot | None) -> None:
        if spot is None:
            self._rouse("evaluation")
        elif self._probe is not None:
            self._probe.reaches(spot)

    def _on_lane(self, lane: Lane) -> None:
        for reference in lane.parameters:
            if not self._registry.bind(reference):
                self._strangers = True

    def _on_observation(self, observed: int) -> None:
        if self._strangers or (observed in _LOOKS and self._looks[observed] < _LOOKS_EACH):
            self._strangers = False
            self._looks[observed] += 1
            if observed >= 3 and self._usage is not None:
                self._usage.stop()
                self._registry.ran = self._usage.ran
            self.look(schedules=False)
            self._monitor.quietly(lambda: self._ties.look(self._registry.models, self._monitor.steps))

    def _after_step(self, steps: int) -> None:
        if self._probe is not None and self._instruments.reads_at(steps):
            self._monitor.quietly(lambda: self._instruments.read(steps))
        self._calls.stepped(steps)
        self._instruments.passes.stepped()
        if self._on_step is None:
            return
        try:
            self._on_step(steps)
        except BaseException:  # the run is being stopped: models and schedulers go with its frames
            self.look()
            raise

    def look(self, *, schedules: bool = True) -> None:
        """Note what is known now of models, masters and schedulers; they may be gone later."""
        live = [(r, o) for r in self._monitor.records if (o := r.optimizer()) is not None]
        quietly = self._monitor.quietly
        quietly(lambda: self._registry.look([(record.index, optimizer) for record, optimizer in live]))
        quietly(lambda: self._instruments.look(self._registry.models))
        quietly(lambda: self._calls.look(self._registry.models))
        quietly(self._resolve_walks)
        if schedules:
            quietly(lambda: self._look_ahead(live))

    def _look_ahead(self, live: list[tuple[Record, torch.optim.Optimizer]]) -> None:
        schedulers = live_schedulers()
        for record, optimizer in live:
            ahead = future(optimizer, record.steps, schedulers)
            if ahead:
                self._future[record.index] = ahead

    def _on_backward(self, losses: Sequence[Tensor], place: Place | None) -> None:
        if self._passed_at == self._monitor.steps and not self._accumulates:
            self._accumulates = True
            self._rouse("gradients that are accumulated")
        self._passed_at = self._monitor.steps
        if self._monitor.steps < _WALK_STEPS and len(self._walks) < _WALKS:
            found = reach(losses)
            self._leaves.update({id(leaf): weakref.ref(leaf) for leaf in found.leaves if is_plain(leaf)})
            only_zero = {id(leaf) for leaf in found.only_zero}
            self._walks.append((False, {id(leaf) for leaf in found.leaves}, only_zero, found.zero_nodes))
            self._backward_place = self._backward_place or place
        self._look_at_losses(losses, place)
        if len(self._losses) < _LOSSES and losses and losses[0].numel() == 1:
            loss = losses[0].detach()
            if loss.untyped_storage().nbytes() > loss.element_size():  # one element of a large tensor
                loss = loss.clone()
            self._losses.append((self._monitor.steps, loss))

    def _look_at_losses(self, losses: Sequence[Tensor], place: Place | None) -> None:
        """Compare losses with what they would be in float64; one that is not finite wakes the probe."""
        if self._probe is None:
            return
        if self._is_looking():
            shadow = self._instruments.shadow
            self._monitor.quietly(lambda: shadow.losses(losses, self._monitor.steps, place))
        elif any(map(_is_lost, losses)):
            self._rouse("a loss that is not finite")

    def _resolve_walks(self) -> None:
        """Turn the leaves that the first backward passes reached into names, while they live."""
        if not self._walks or self._backward is not None or self._monitor.steps < 1:
            return
        names: dict[int, str] = {}
        live = {key: leaf for key, ref in self._leaves.items() if (leaf := ref()) is not None}
        for key, leaf in live.items():
            owner = self._registry.models.owner(leaf)
            if owner is not None:
                names[key] = owner.name
        stepped = {
            id(p)
            for r in self._monitor.records
            if (o := r.optimizer()) is not None
            for group in o.param_groups
            for p in group["params"]
        }
        reached = set().union(*(walk[1] for walk in self._walks))
        # reached openly by one loss is enough
        zero = reached - set().union(*(walk[1] - walk[2] for walk in self._walks))
        self._backward = Backward(
            place=self._backward_place,
            reaches=tuple(sorted(names[k] for k in reached if k in names)),
            zero_derivative=tuple(sorted(names[k] for k in zero if k in names)),
            zero_nodes=tuple(sorted(set().union(*(walk[3] for walk in self._walks)))),
            detached=not any(k in names or k in stepped for k in reached),
            cuts=self._cuts(),
        )
        self._leaves, self._walks = {}, []

    def _cuts(self) -> tuple[Place, ...]:
        if self._provenance is None or self._backward_place is None:
            return ()
        return self._provenance.cuts_in(self._backward_place)

    # ------------------------------------------------------------------ afterwards

    def evidence(self) -> Evidence:
        """Return what was seen so far, as plain numbers."""
        if self._attached:
            self.look()
        monitor, registry = self._monitor, self._registry
        monitor.close_stretch()
        with apart():
            parameters = assemble.parameters(monitor, registry)
            optimizers = assemble.optimizers(monitor, registry, self._future)
            states = assemble.states(monitor, registry)
            counters = assemble.counters(monitor, registry, self._place)
        excerpts: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
        if self._files:
            parameters, excerpts = _with_likely_casts(parameters, self._files)
        lanes = [lane for some in monitor.lanes.values() for lane in some]
        timeline = tuple(step for step, _, _ in lanes[0].ledger.timeline) if lanes else ()
        devices = sorted({str(lane.device) for lane in lanes})
        end = time.perf_counter() if self._attached else self._end
        return Evidence(
            run=Run(
                target="Doctor",
                steps=monitor.steps,
                observed=monitor.observed,
                torch=torch.__version__,
                python=platform.python_version(),
                device=", ".join(devices),
                started=self._started_at.isoformat(timespec="seconds"),
                seconds=end - self._start,
                observing_seconds=monitor.seconds,
                limits=(
                    *monitor.limits,
                    *(self._probe.limits if self._probe is not None else ()),
                    *self._instruments.limits,
                ),
            ),
            parameters=parameters,
            states=states,
            counters=counters,
            low_default=self._provenance.low_default if self._provenance is not None else None,
            optimizers=optimizers,
            backward=self._backward,
            forwards=self._forwards(),
            **self._instruments.evidence(self._place),
            **self._calls.evidence(self._place),
            ties=self._ties.evidence(self._place),
            probed=self._probe is not None and self._probe.looked,
            losses=_loss_values(self._losses),
            timeline=timeline,
            excerpts=excerpts,
        )

    def _place(self, spot: Spot | None) -> Place | None:
        if self._provenance is not None:
            return self._provenance.place(spot)
        return None if spot is None else Source().place(spot.file, spot.line, spot.function)

    def _forwards(self) -> tuple[Forward, ...]:
        if self._usage is None:
            return ()
        return self._usage.forwards.found(self._provenance.source if self._provenance else Source())

    @property
    def observing_seconds(self) -> float:
        """Return the wall time spent observing so far, in seconds."""
        return self._monitor.seconds

    def report(self) -> Report:
        """Return the diagnosis of what was seen so far."""
        from precdoctor.report import Report

        return Report.of(self.evidence())

    def step_report(self) -> str:
        """Return one line on what the run looks like after the last observed step."""
        evidence = self.evidence()
        rows = [p for p in evidence.parameters if p.updates is not None and p.updates.edq]
        if not rows:
            return f"step {evidence.run.steps}: no update was seen yet"
        lost = sum(p.updates.lost_share * p.updates.intended for p in rows if p.updates is not None)
        intended = sum(p.updates.intended for p in rows if p.updates is not None)
        frozen = [p.name for p in rows if p.updates is not None and p.updates.edq[0].high < 0.05]
        share = lost / max(intended, 1)
        text = f"step {evidence.run.steps}: {len(rows)} parameters, {share:.1%} of updates lost"
        return text + (f", {len(frozen)} frozen: {', '.join(frozen[:3])}" if frozen else "")


def _is_lost(loss: Tensor) -> bool:
    """Tell whether a loss is inf or NaN; one on another device is not asked, since that waits for it."""
    near = is_plain(loss) and loss.device.type == "cpu" and loss.is_floating_point() and loss.numel() == 1
    return near and not math.isfinite(float(loss.detach()))


def _loss_values(losses: list[tuple[int, Tensor]]) -> tuple[tuple[int, float], ...]:
    stride = max(len(losses) // 512, 1)
    return tuple((step, float(loss)) for step, loss in losses[::stride])


def _user_files(frame: FrameType | None) -> tuple[str, ...]:
    """Return the user's files on the call stack, innermost first."""
    code, files = UserCode(), dict[str, None]()
    while frame is not None:
        if code.is_user(frame.f_code.co_filename):
            files[frame.f_code.co_filename] = None
        frame = frame.f_back
    return tuple(files)


def _with_likely_casts(
    parameters: tuple[Parameter, ...], files: tuple[str, ...]
) -> tuple[tuple[Parameter, ...], tuple[tuple[str, int, tuple[str, ...]], ...]]:
    """Give parameters in low formats the cast that the source suggests: nobody saw the real one."""
    source, places, found = Source(), dict[str, Place](), []
    for parameter in parameters:
        if parameter.cast is None and parameter.format not in ("float32", "float64"):
            likely = source.likely_casts(files, parameter.format)
            if likely:
                cast = Cast(before="", after=parameter.format, how="found in the source", place=likely[0])
                parameter, places[parameter.format] = dataclasses.replace(parameter, cast=cast), likely[0]
        found.append(parameter)
    return tuple(found), source.excerpts(places.values())
