"""Gradient scalers: their scale, the steps they leave out, and the order of calls around them.

Methods of torch's scaler, its functions that clip, and ``torch.autograd.backward`` are wrapped while this is
attached. Nothing is read back from a device but at the first calls, and at every 256th update.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from precdoctor.evidence import Place, Scaler
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.lineage.gradients import function_of_engine
from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.models import Models
from precdoctor.observe.patches import Patches
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.scaling.clips import Clip, largest
from precdoctor.observe.scaling.scaled import ScaledGradients, gradients_of, parameters_of
from precdoctor.observe.scaling.scalers import Bypassed, ScalerHistory, history_of
from precdoctor.observe.watch import is_plain

#: scalers kept; updates between two looks at what lies on a device
_SCALERS, _PENDING = 64, 256
_CLAMPS = ("aten::clamp", "aten::clamp_")
#: gradients that became smaller than this many times 1/scale were divided by hand
_DIVIDED = 1.5


class ScalingWatch:
    """Watches the scalers of the process; ``quietly`` does something apart from the run.

    ``is_ours`` tells that a step is none of the run's; ``on_skip`` is called after one was left out.
    """

    def __init__(
        self,
        code: UserCode,
        quietly: Callable[[Callable[[], None]], bool],
        is_ours: Callable[[], bool] = lambda: False,
        on_skip: Callable[[], None] = lambda: None,
    ) -> None:
        self._code, self._quietly, self._is_ours, self._on_skip = code, quietly, is_ours, on_skip
        self._patches = Patches()
        self._known: dict[int, ScalerHistory] = {}
        self._gone: list[ScalerHistory] = []
        self._gradients = ScaledGradients()
        #: what was made of gradients since their backward pass, and the lines that made it
        self._made_of: dict[int, tuple[Memory, Spot | None]] = {}
        self._backward: Spot | None = None
        #: largest magnitude of what an operation is about to clamp in place
        self._top: float | None = None
        self._inside_backward = self._inside_step = self._inside_clip = False
        self._handle: Any = None

    # ------------------------------------------------------------------ life

    def attach(self) -> None:
        """Wrap what tells of scaling."""
        kind = torch.amp.GradScaler
        self._patches.wrap(kind, "__init__", self._around_init)
        self._patches.wrap(kind, "scale", self._around_scale)
        self._patches.wrap(kind, "unscale_", self._around_unscale)
        self._patches.wrap(kind, "step", self._around_step)
        self._patches.wrap(kind, "update", self._around_update)
        self._patches.wrap(kind, "get_scale", self._around_get)
        clipping = sys.modules["torch.nn.utils.clip_grad"]
        for name in ("clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_"):
            for module in (torch.nn.utils, clipping):
                if name in module.__dict__:
                    self._patches.wrap(module, name, self._around_clip)
        self._patches.wrap(torch.autograd, "backward", self._around_backward)
        self._handle = register_optimizer_step_pre_hook(self._before_step)

    def detach(self) -> None:
        """Put everything back; what was seen stays."""
        self._patches.undo()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @property
    def _live(self) -> list[ScalerHistory]:
        """Return the scalers that have scaled a loss since their last update."""
        return [s for s in self._known.values() if s.enabled and s.in_use]

    def _of(self, scaler: torch.amp.GradScaler) -> ScalerHistory:
        known = self._known.get(id(scaler))
        if known is None or known.ref() is not scaler:
            if known is not None:
                self._gone = [*self._gone, known][:_SCALERS]
            known = self._known[id(scaler)] = history_of(scaler)
        return known

    def _spot(self, frame: FrameType | None) -> Spot | None:
        return self._code.innermost(frame)[0]

    # ------------------------------------------------------------------ wrappers: pass everything through

    def _around_init(self, original: Any) -> Any:
        def wrapper(scaler: Any, *args: Any, **kwargs: Any) -> None:
            original(scaler, *args, **kwargs)
            frame = sys._getframe(1)
            self._quietly(lambda: self._made(scaler, args, kwargs, frame))

        return wrapper

    def _around_scale(self, original: Any) -> Any:
        def wrapper(scaler: Any, outputs: Any) -> Any:
            result = original(scaler, outputs)
            frame = sys._getframe(1)
            self._quietly(lambda: self._scaled(scaler, outputs, result, frame))
            return result

        return wrapper

    def _around_unscale(self, original: Any) -> Any:
        def wrapper(scaler: Any, optimizer: Any) -> None:
            frame = sys._getframe(1)
            self._quietly(lambda: self._unscaling(scaler, optimizer, frame))
            original(scaler, optimizer)

        return wrapper

    def _around_step(self, original: Any) -> Any:
        def wrapper(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)
            self._quietly(lambda: self._stepping(scaler, optimizer, frame))
            outer, self._inside_step = self._inside_step, True
            try:
                return original(scaler, optimizer, *args, **kwargs)
            finally:
                self._inside_step = outer
                self._quietly(lambda: self._stepped(scaler, optimizer))

        return wrapper

    def _around_update(self, original: Any) -> Any:
        def wrapper(scaler: Any, *args: Any, **kwargs: Any) -> None:
            original(scaler, *args, **kwargs)
            self._quietly(lambda: self._updated(scaler))

        return wrapper

    def _around_get(self, original: Any) -> Any:
        def wrapper(scaler: Any) -> Any:
            self._quietly(lambda: self._read(scaler))
            return original(scaler)

        return wrapper

    def _around_clip(self, original: Any) -> Any:
        def wrapper(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            live = [s for s in self._live if s.clips.wants_calls]
            if not live or self._inside_clip:
                return original(parameters, *args, **kwargs)
            if not isinstance(parameters, Tensor):
                listed = list(parameters)
                # a generator stays one: torch warns of an empty one
                parameters = (p for p in listed) if isinstance(parameters, types.GeneratorType) else listed
            else:
                listed = [parameters]
            frame, before = sys._getframe(1), list[Any]()
            if "value" in original.__name__:
                self._quietly(lambda: before.append(largest(gradients_of(listed))))
            self._inside_clip = True
            try:
                result = original(parameters, *args, **kwargs)
            finally:
                self._inside_clip = False
            norm = result if result is not None else args[1] if len(args) > 1 else kwargs.get("total_norm")
            was = before[0] if before else norm
            self._quietly(lambda: self._clipped(live, listed, args, kwargs, was, frame))
            return result

        return wrapper

    def _around_backward(self, original: Any) -> Any:
        def wrapper(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
            scaling = any(s.enabled and s.was_used for s in self._known.values())
            walking = not self._gradients.exhausted
            if not walking:
                self._gradients.clear()  # what is not walked any more is not known
            measuring = any(s.clips.wants_measuring for s in self._live) and self._gradients.wants_measuring
            if self._inside_backward or not scaling or not (walking or measuring):
                original(tensors, grad_tensors, *args, **kwargs)
                return
            frame = sys._getframe(1)
            if walking:
                self._quietly(lambda: self._begins_backward(tensors, grad_tensors, frame))
            self._inside_backward = True  # checkpointing calls backward inside backward
            try:
                original(tensors, grad_tensors, *args, **kwargs)
            finally:
                self._inside_backward = False
            self._quietly(lambda: self._ended_backward(walking))

        return wrapper

    # ------------------------------------------------------------------ notes

    def _made(self, scaler: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> None:
        known = self._of(scaler)
        known.enabled = bool(scaler.is_enabled())
        known.requested = bool(kwargs.get("enabled", args[5] if len(args) > 5 else True))
        known.spot = self._spot(frame)

    def _read(self, scaler: Any) -> None:
        known = self._of(scaler)
        known.was_read, known.read_in_use = True, known.in_use

    def _scaled(self, scaler: Any, outputs: Any, result: Any, frame: FrameType) -> None:
        known = self._of(scaler)
        known.enabled = bool(scaler.is_enabled())
        known.scaled_at = known.scaled_at or self._spot(frame)
        if not known.enabled:
            return
        known.used()
        if isinstance(outputs, Tensor) and outputs.numel() == 1:
            known.outputs = outputs.detach()
        self._gradients.mark(result)

    def _unscaling(self, scaler: Any, optimizer: Any, frame: FrameType | None) -> None:
        known = self._of(scaler)
        if not known.enabled or id(optimizer) in known.unscaled:
            return
        known.unscaled.add(id(optimizer))
        self._gradients.storages = frozenset()
        spot, parameters = self._spot(frame), parameters_of(optimizer)
        clipped = known.clips.unscaling(frozenset(id(p) for p in parameters), spot)
        # who reads the scale of gradients at hand may mean to multiply a threshold by it
        if not clipped and not known.read_in_use and known.clips.wants_measuring and known.scale != 1:
            self._find_writers(known, gradients_of(parameters))
            known.clips.note(parameters, self._gradients.sizes, known.scale, spot)

    def _stepping(self, scaler: Any, optimizer: Any, frame: FrameType) -> None:
        known = self._of(scaler)
        known.stepped_at = known.stepped_at or self._spot(frame)
        if not known.enabled:
            return
        states = getattr(scaler, "_per_optimizer_states", {})
        stage = states[id(optimizer)]["stage"].name if id(optimizer) in states else "READY"
        if stage != "READY":  # by a method that a subclass has of its own
            known.unscaled.add(id(optimizer))
        if id(optimizer) in known.unscaled:
            return
        if self._gradients.of(optimizer) == {"plain"} and known.scale != 1:
            self._bypassed(known, "unscaled loss", optimizer, frame)
        self._unscaling(scaler, optimizer, frame)

    def _stepped(self, scaler: Any, optimizer: Any) -> None:
        known = self._of(scaler)
        left_out = known.enabled and known.stepped(optimizer)
        self._gradients.forget(optimizer)
        if left_out:
            self._on_skip()

    def _updated(self, scaler: Any) -> None:
        known = self._of(scaler)
        if known.enabled:
            known.updated(_PENDING)

    def _before_step(self, optimizer: torch.optim.Optimizer, _: Any, __: Any) -> None:
        if self._inside_step or self._is_ours() or not any(s.was_used for s in self._known.values()):
            return
        frame = sys._getframe(1)
        self._quietly(lambda: self._direct_step(optimizer, frame))

    def _direct_step(self, optimizer: torch.optim.Optimizer, frame: FrameType) -> None:
        """Look at a step that goes through no scaler."""
        used = [s for s in self._known.values() if s.enabled and s.was_used]
        unscaled = any(id(optimizer) in s.unscaled for s in used)
        if not unscaled and self._gradients.of(optimizer) == {"scaled"}:
            known = next((s for s in used if s.in_use), used[0])
            if known.scale != 1 and self._is_scaled_still(known, optimizer):
                self._bypassed(known, "scaled gradient", optimizer, frame)
            known.clips.pending.clear()
        self._gradients.forget(optimizer)

    def _is_scaled_still(self, known: ScalerHistory, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether nobody has divided the gradients by hand; clipping makes them smaller as well."""
        shrunk = self._gradients.shrunk(optimizer)
        if shrunk is None:
            return False
        if shrunk > _DIVIDED / known.scale:
            return True
        norms = [float(clip.before) for clip in known.clips.pending if clip.before is not None]
        return bool(norms) and self._gradients.measured(optimizer) <= _DIVIDED * max(norms)

    def _bypassed(self, known: ScalerHistory, kind: Any, optimizer: Any, frame: FrameType) -> None:
        spot = self._spot(frame)
        name = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        first = Bypassed(kind, spot, self._backward, name, known.scale)
        known.bypassed.setdefault((kind, spot), first).seen += 1

    def _clipped(
        self,
        live: Sequence[ScalerHistory],
        parameters: Sequence[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        before: Any,
        frame: FrameType,
    ) -> None:
        value: Any = kwargs.get("clip_value", kwargs.get("max_norm", args[0] if args else None))
        kind: Any = "value" if isinstance(before, float) else "norm"
        spot, ids = self._spot(frame), frozenset(id(p) for p in parameters)
        for known in live:
            scale = known.scale
            if scale != 1:
                known.clips.note_call(Clip(kind, spot, ids, scale, float(value), before))

    def _begins_backward(self, tensors: Any, seeds: Any, frame: FrameType) -> None:
        several = tensors if isinstance(tensors, (list, tuple)) else [tensors]
        losses = [t for t in several if isinstance(t, Tensor)]
        self._backward = self._spot(frame)
        read = any(s.was_read for s in self._known.values())
        self._gradients.before_backward(losses, seeds, by_hand=read)

    def _ended_backward(self, walked: bool) -> None:
        self._made_of = {}
        if walked:
            self._gradients.after_backward()
        if any(s.clips.wants_measuring for s in self._live):
            self._gradients.measure()

    # ------------------------------------------------------------------ told by the operation probe

    def before(self, func: Any, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        """Measure what is about to be clamped in place in a backward pass."""
        self._top = None
        if func._schema.name == "aten::clamp_" and self._inside_backward and self._gradients.are_scaled:
            self._top = largest(t for t in tensors_in(args[:1]) if is_plain(t))

    def after(self, operation: Operation) -> None:
        """Note who writes to gradients, or makes others, between their backward pass and their division.

        And who clamps them within it, in a hook or the ``backward`` of a function.
        """
        if operation.backward and operation.name in _CLAMPS:
            self._clamped(operation)
        storages = self._gradients.storages
        if not storages or operation.backward or not hasattr(operation.func, "_schema"):
            return
        if not any(is_plain(t) and storage_key(t) in storages for t in tensors_in(operation.args)):
            return
        if not operation.func._schema.is_mutable:
            made = [t for t in operation.outputs if is_plain(t) and storage_key(t) not in storages]
            self._made_of.update({storage_key(t): (Memory(t), self._spot(operation.frame)) for t in made})
        elif any(is_plain(t) and storage_key(t) in storages for t in tensors_in(operation.args[:1])):
            for known in self._live:
                known.clips.written = self._spot(operation.frame)

    def _clamped(self, operation: Operation) -> None:
        """Take note that a gradient of a scaled loss is clamped by the user's code that the engine calls."""
        live = [s for s in self._live if s.clips.wants_calls]
        function = function_of_engine(operation.frame)
        bounds = (*operation.args[1:], *operation.kwargs.values())
        numbers = [abs(bound) for bound in bounds if isinstance(bound, (int, float))]
        if not live or not numbers or function is None or not self._gradients.are_scaled:
            return
        if not self._code.is_user(function.f_code.co_filename):
            return
        top = self._top if self._top is not None else largest(filter(is_plain, operation.inputs))
        spot, threshold = self._spot(operation.frame), float(max(numbers))
        for known in live:
            scale = known.scale
            if scale != 1:
                known.clips.note_clamp(Clip("clamp", spot, self._gradients.reached, scale, threshold, top))

    def _find_writers(self, known: ScalerHistory, gradients: list[Tensor]) -> None:
        """Look who made what stands in the place of the gradients that the backward pass has left."""
        for gradient in filter(is_plain, gradients):
            made = self._made_of.get(storage_key(gradient))
            if made is not None and not made[0].gone:
                known.clips.written = made[1]

    def step_begins(self, *_: Any) -> None:
        """Nothing: steps are seen by a hook of its own."""

    def fall_asleep(self) -> None:
        """Nothing is kept for operations."""

    # ------------------------------------------------------------------ afterwards

    def look(self, models: Models) -> None:
        """Note the names of parameters while they live."""
        for known in self._known.values():
            known.look(models)

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[Scaler, ...]:
        """Return what was seen of each scaler."""
        return tuple(known.record(place) for known in (*self._gone, *self._known.values()))
