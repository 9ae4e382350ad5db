"""Weights that are saved in, or loaded from, a coarser format than they are trained in.

``torch.save`` and the methods that load states are wrapped while this is attached. What is saved is walked
through dicts, lists and modules; nothing is pickled, and nothing read from a file.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from precdoctor.evidence import Place, Snapshot
from precdoctor.observe.checkpoints.round_trips import Held, RoundTrips
from precdoctor.observe.checkpoints.states import SavedStates
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.patches import Patches
from precdoctor.observe.scaling.scaled import parameters_of
from precdoctor.observe.watch import Watch, is_plain

#: elements of a weight that are compared; tensors and levels of what is saved that are looked at
_SAMPLE, _TENSORS, _LEVELS = 4096, 100_000, 8
#: lines kept, and saves at one line that are looked at
_SITES, _SAVES = 64, 16
_LOW = (torch.float16, torch.bfloat16)
_FULL = (torch.float32, torch.float64)
#: told of named tensors, and the line that saves or loads them
Told = Callable[[Iterable[tuple[str, Tensor]], Spot | None], None]


@dataclass(slots=True, eq=False)
class _Snapshot:
    kind: Literal["saved", "loaded"]
    trained: str
    format: str
    spot: Spot | None
    cast: Spot | None = None
    times: int = 0
    steps: tuple[int, int] = (0, 0)
    parameters: list[weakref.ref[Tensor]] = field(default_factory=list)
    names: tuple[str, ...] = ()
    numel: int = 0
    with_optimizer: bool = False
    #: the full weights were not saved at the same step, at least once
    alone: bool = False
    loaded_back: Spot | None = None
    #: loaded into weights that had been trained
    was_trained: bool = False
    changed: float = 0.0
    error: float = 0.0


class CheckpointWatch:
    """Watches what is saved and loaded.

    ``optimizers`` returns those that have made a step, ``formats`` the first formats of their parameters,
    ``cast_of`` the line that cast a tensor. ``on_saved`` and ``on_loaded`` are told of the tensors in what is
    saved and in a module's state that is set, ``on_state`` before such a state is taken or set.
    """

    def __init__(
        self,
        code: UserCode,
        quietly: Callable[[Callable[[], None]], bool],
        optimizers: Callable[[], list[torch.optim.Optimizer]],
        formats: Callable[[], dict[int, torch.dtype]],
        cast_of: Callable[[Tensor], Spot | None],
        on_saved: Told,
        on_loaded: Told,
        on_state: Callable[[], None] = lambda: None,
    ) -> None:
        self._code, self._quietly, self._on_state = code, quietly, on_state
        self._on_saved, self._on_loaded = on_saved, on_loaded
        self._optimizers, self._formats, self._cast_of = optimizers, formats, cast_of
        self._states, self._trips = SavedStates(cast_of), RoundTrips(cast_of)
        self._patches = Patches()
        self._sites: dict[tuple[str, Spot | None], _Snapshot] = {}
        #: saved at the same step: parameters in full, and whether optimizer state was
        self._full: set[int] = set()
        self._state = False
        self._now: list[tuple[_Snapshot, frozenset[int]]] = []
        #: weights that were rounded themselves to be saved, and have not been stepped since
        self._rounded: list[_Snapshot] = []
        #: optimizer steps as reported; those of all optimizers together, and how many at the last save
        self._steps = self._moment = 0
        self._saved_at = -1
        #: loaded from a low format, and optimizers whose state was loaded, and not stepped since
        self._loaded: list[_Snapshot] = []
        self._resumed: list[weakref.ref[torch.optim.Optimizer]] = []

    # ------------------------------------------------------------------ life

    def attach(self) -> None:
        """Wrap what saves and loads."""
        self._patches.wrap(torch, "save", self._around_save)
        self._patches.wrap(nn.Module, "state_dict", self._around_state)
        self._patches.wrap(nn.Module, "load_state_dict", self._around_module)
        self._patches.wrap(torch.optim.Optimizer, "load_state_dict", self._around_optimizer)

    def detach(self) -> None:
        """Put everything back; what was seen stays."""
        self._patches.undo()

    def stepped(self, steps: int) -> None:
        """Take note that an optimizer has made a step; ``steps`` were made in all."""
        self._steps = steps
        self._moment += 1
        if self._loaded or self._rounded:
            self._went_on()

    # ------------------------------------------------------------------ wrappers: pass everything through

    def _around_save(self, original: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            frame, saved = sys._getframe(1), kwargs.get("obj", args[0] if args else None)
            self._quietly(lambda: self._save(saved, frame))
            return original(*args, **kwargs)

        return wrapper

    def _around_state(self, original: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._on_state()
            return original(*args, **kwargs)

        return wrapper

    def _around_module(self, original: Any) -> Any:
        def wrapper(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._on_state()
            frame, state = sys._getframe(1), kwargs.get("state_dict", args[0] if args else None)
            held: Held | None = None

            def before() -> None:
                nonlocal held
                held = self._trips.before(module, state)

            def after() -> None:
                spot = self._code.innermost(frame)[0]
                if held is not None:
                    self._trips.loaded(held, module, state, spot, self._steps)
                self._load(module, state, spot)

            self._quietly(before)
            result = original(module, *args, **kwargs)
            self._quietly(after)
            return result

        return wrapper

    def _around_optimizer(self, original: Any) -> Any:
        def wrapper(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            frame, state = sys._getframe(1), kwargs.get("state_dict", args[0] if args else None)
            spot = self._code.innermost(frame)[0]
            self._quietly(lambda: self._states.loaded(state, spot, self._steps))
            result = original(optimizer, *args, **kwargs)
            self._quietly(lambda: self._resume(optimizer))
            return result

        return wrapper

    # ------------------------------------------------------------------ saving

    def _save(self, saved: Any, frame: FrameType) -> None:
        spot = self._code.innermost(frame)[0]
        tensors, holds_state = _contents(saved)
        self._on_saved(tensors, spot)
        self._trips.saved(tensors, spot)
        known = self._sites.get(("saved", spot))
        if known is not None and known.times >= _SAVES:
            known.times += 1
            known.steps = (known.steps[0], self._steps)
            return
        if self._saved_at != self._moment:
            self._close()
            self._saved_at = self._moment
        self._states.saved(saved, self._optimizers(), spot, self._steps)
        self._state |= holds_state
        formats = self._formats()
        trained = _by_shape(self._optimizers(), formats)
        low: dict[int, tuple[str, Tensor, Tensor]] = {}
        for name, tensor in tensors:
            for parameter in trained.get(tuple(tensor.shape), ()):
                rounded = tensor.dtype in _LOW and _is_rounded(parameter, tensor)
                if rounded and id(parameter) not in low:
                    low[id(parameter)] = (name, parameter, tensor)
                    break
                if tensor.dtype == parameter.dtype and not rounded and _is_same(parameter, tensor):
                    self._full.add(id(parameter))
                    break
        found = [item for key, item in low.items() if key not in self._full]
        if found:
            self._truncated(found, formats, spot)

    def _truncated(
        self, found: list[tuple[str, Tensor, Tensor]], formats: dict[int, torch.dtype], spot: Spot | None
    ) -> None:
        pairs = [(parameter, tensor) for _, parameter, tensor in found]
        in_place = any(parameter.dtype in _LOW for parameter, _ in pairs)
        changed, error = (1.0, 0.0) if in_place else _difference(pairs)
        if not changed:
            return
        known = self._sites.get(("saved", spot))
        if known is None:
            dtype = formats[id(pairs[0][0])] if in_place else pairs[0][0].dtype
            known = self._new("saved", dtype, pairs[0][1].dtype, spot)
            known.steps = (self._steps, self._steps)
        known.cast = known.cast or self._cast_of(pairs[0][1])
        known.times += 1
        known.steps = (known.steps[0], self._steps)
        known.parameters = [weakref.ref(parameter) for parameter, _ in pairs]
        known.numel = sum(parameter.numel() for parameter, _ in pairs)
        known.names = tuple(name for name, _, _ in found)
        known.changed, known.error = max(known.changed, changed), max(known.error, error)
        self._now.append((known, frozenset(id(parameter) for parameter, _ in pairs)))
        if in_place:
            self._rounded.append(known)

    def _close(self) -> None:
        """Judge what was saved at one step, taken together."""
        for known, held in self._now:
            if not held <= self._full:
                known.alone = True
                known.with_optimizer |= self._state
        self._full, self._state, self._now = set(), False, []

    def _new(
        self, kind: Literal["saved", "loaded"], trained: torch.dtype, low: torch.dtype, spot: Spot | None
    ) -> _Snapshot:
        snapshot = _Snapshot(kind, str(trained).removeprefix("torch."), str(low).removeprefix("torch."), spot)
        if len(self._sites) < _SITES:
            self._sites[kind, spot] = snapshot
        return snapshot

    # ------------------------------------------------------------------ loading

    def _load(self, module: nn.Module, state: Any, spot: Spot | None) -> None:
        if not isinstance(state, Mapping):
            return
        low = {name: v for name, v in state.items() if isinstance(v, Tensor) and v.dtype in _LOW}
        if not low:
            return
        self._on_loaded(low.items(), spot)
        own = dict(module.named_parameters(remove_duplicate=False))
        found = [
            (name, parameter)
            for name in low
            if (parameter := own.get(name)) is not None
            and parameter.dtype in _FULL
            and parameter.requires_grad
        ]
        if not found:
            return
        known = self._sites.get(("loaded", spot))
        if known is None:
            known = self._new("loaded", found[0][1].dtype, state[found[0][0]].dtype, spot)
            known.steps = (self._steps, self._steps)
        known.times += 1
        known.steps = (known.steps[0], self._steps)
        known.names = tuple(name for name, _ in found)
        known.parameters = [weakref.ref(parameter) for _, parameter in found]
        known.numel = sum(parameter.numel() for _, parameter in found)
        stepped = {id(p) for optimizer in self._optimizers() for p in parameters_of(optimizer)}
        known.was_trained |= any(id(p) in stepped for _, p in found)
        self._loaded = [*self._loaded, known][-_SITES:]
        self._match()

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        if any(state for state in optimizer.state.values()):
            self._resumed = [*self._resumed, weakref.ref(optimizer)][-_SITES:]
            self._match()

    def _match(self) -> None:
        """Note whose optimizer state was loaded as well: training goes on from there."""
        held = {id(p) for ref in self._resumed if (o := ref()) is not None for p in parameters_of(o)}
        for known in self._loaded:
            if any(id(p) in held for ref in known.parameters if (p := ref()) is not None):
                known.with_optimizer = True

    def _went_on(self) -> None:
        """Note, at a step, which of the loaded weights are trained on from where they were saved."""
        stepped = {id(p) for optimizer in self._optimizers() for p in parameters_of(optimizer)}
        waiting = []
        for known in self._loaded:
            if not any(id(p) in stepped for ref in known.parameters if (p := ref()) is not None):
                waiting.append(known)
            elif known.with_optimizer or known.was_trained:
                for saved in self._sites.values():
                    if saved.kind == "saved" and saved.numel == known.numel:
                        saved.loaded_back = saved.loaded_back or known.spot
        self._loaded, self._resumed = waiting, []
        for known in self._rounded:
            if any(p.dtype in _FULL for ref in known.parameters if (p := ref()) is not None):
                known.loaded_back = known.loaded_back or known.spot
        self._rounded = []

    # ------------------------------------------------------------------ afterwards

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[Snapshot, ...]:
        """Return what was saved and loaded."""
        self._close()
        weights = tuple(
            Snapshot(
                kind=known.kind,
                trained=known.trained,
                format=known.format,
                place=place(known.spot),
                cast=place(known.cast),
                times=known.times,
                first_step=known.steps[0],
                last_step=known.steps[1],
                parameters=known.names,
                numel=known.numel,
                with_optimizer=known.with_optimizer,
                with_full=known.kind == "saved" and not known.alone,
                loaded_back=place(known.loaded_back),
                changed_share=known.changed,
                relative_error=known.error,
            )
            for known in self._sites.values()
        )
        return (*weights, *self._states.evidence(place), *self._trips.evidence(place))


def _contents(saved: Any) -> tuple[list[tuple[str, Tensor]], bool]:
    """Return the tensors in what is saved, by name, and whether state of an optimizer is among it."""
    tensors: list[tuple[str, Tensor]] = []
    holds_state = False
    todo: list[tuple[str, Any, int]] = [("", saved, 0)]
    while todo and len(tensors) < _TENSORS:
        name, value, level = todo.pop(0)
        if isinstance(value, Tensor):
            if is_plain(value) and value.is_floating_point():
                tensors.append((name, value.detach()))
        elif level > _LEVELS:
            continue
        elif isinstance(value, nn.Module):
            todo += [(key, p, level) for key, p in value.named_parameters()]
        elif isinstance(value, Mapping):
            holds_state |= bool(value.get("state")) and "param_groups" in value
            todo += [(str(key), item, level + 1) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            todo += [(name, item, level + 1) for item in value]
    return tensors, holds_state


def _by_shape(
    optimizers: list[torch.optim.Optimizer], formats: dict[int, torch.dtype]
) -> dict[tuple[int, ...], list[Tensor]]:
    """Return the parameters that optimizers step in full, by shape; they may be rounded just now."""
    found: dict[tuple[int, ...], list[Tensor]] = {}
    for optimizer in optimizers:
        for parameter in parameters_of(optimizer):
            full = parameter.dtype in _FULL or formats.get(id(parameter)) in _FULL
            if parameter.requires_grad and full and is_plain(parameter):
                found.setdefault(tuple(parameter.shape), []).append(parameter)
    return found


def _sample(tensor: Tensor) -> Tensor:
    return Watch.of(tensor.numel(), _SAMPLE).view(tensor).reshape(-1)


def _is_rounded(parameter: Tensor, tensor: Tensor) -> bool:
    """Tell whether a tensor is the parameter, rounded to the tensor's format."""
    return bool(torch.equal(_sample(parameter).to(tensor.dtype).to(tensor.device), _sample(tensor)))


def _is_same(parameter: Tensor, tensor: Tensor) -> bool:
    return bool(torch.equal(_sample(parameter).to(tensor.device), _sample(tensor)))


def _difference(pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return the share of the elements that rounding changed, and its size relative to theirs (rms)."""
    changed = total = 0
    squares = weights = 0.0
    for parameter, tensor in pairs:
        full, low = _sample(parameter).double(), _sample(tensor).to(parameter.device).double()
        changed += int((full != low).sum())
        total += full.numel()
        squares += float((full - low).square().sum())
        weights += float(full.square().sum())
    return changed / max(total, 1), (squares / weights) ** 0.5 if weights else 0.0
