"""Provenance: which line of the user's code made a parameter, cast it, built its optimizer, called backward.

Recorded as it happens, by wrappers of a few functions of torch that are put back at the end; nothing runs
per step but a look at the caller of each backward.
"""

from __future__ import annotations

import copy
import inspect
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from precdoctor.evidence import Cast, Place
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.patches import HIDDEN, Patches
from precdoctor.observe.provenance.histories import Change, Histories, ParameterHistory
from precdoctor.observe.provenance.source import Source

_Result = TypeVar("_Result")
OnBackward = Callable[[Sequence[Tensor], Place | None], None]

_MODULE_CASTS = ("to", "half", "bfloat16", "float", "double", "type", "to_empty", "cuda", "cpu")


class Provenance:
    """Records the user's lines while it is entered; afterwards torch is as it was.

    Ask while the objects live: nothing is kept alive. ``own`` are directories that count as the user's
    code even inside an installed package.
    """

    def __init__(self, *, own: Iterable[Path] = ()) -> None:
        #: what could not be recorded and why, in sentences
        self.limits: list[str] = []
        self.source = Source()
        #: whose code a frame is
        self.code = UserCode(own)
        self._histories = Histories()
        self._copies: dict[int, ParameterHistory] = {}
        self._default: Change | None = None
        self._low_default: Spot | None = None
        self._backward: Spot | None = None
        self._callbacks: list[OnBackward] = []
        self._files: dict[str, None] = {}
        self._constants: dict[Place, Place | None] = {}
        self._places: dict[Spot, Place] = {}
        self._count = 0
        self._active = self._applying = self._in_backward = False
        self._patches = Patches()

    # ------------------------------------------------------------------ what is known

    def creation(self, parameter: Tensor) -> Place | None:
        """Return the line that created a live parameter."""
        history = self._histories.of(parameter)
        return None if history is None else self.place(history.created)

    def replacement(self, parameter: Tensor) -> Place | None:
        """Return the line at which a live parameter took another's place in a module."""
        history = self._histories.of(parameter)
        return None if history is None else self.place(history.replaced)

    def cast(self, parameter: Tensor) -> Cast | None:
        """Return the change that gave a live parameter its present format; None where there was none.

        A change that left no trace, such as ``p.data = p.data.half()``, is searched in the user's source.
        """
        history, now = self._histories.of(parameter), _format(parameter.dtype)
        if history is None:
            likely = self.source.likely_casts(self._files, now) if _is_low(parameter.dtype) else ()
            return Cast(before="", after=now, how="found in the source", place=likely[0]) if likely else None
        if history.dtype != parameter.dtype:
            found = self.source.data_assignments(self._files)
            before = _format(history.dtype)
            return Cast(before=before, after=now, how="data assignment", place=next(iter(found), None))
        change = history.cast
        if change is None:
            return None
        place = self.place(change.spot)
        constant = None if place is None else self.dtype_constant(place)
        return Cast(before=change.before, after=change.after, how=change.how, place=place, constant=constant)

    def created_at(self, parameter: Tensor) -> int | None:
        """Return a live parameter's place in the order of all parameters and optimizers of the process."""
        history = self._histories.of(parameter)
        return None if history is None else history.number

    def constructed_at(self, optimizer: torch.optim.Optimizer) -> int | None:
        """Return a live optimizer's place in the same order."""
        known = self._histories.of_optimizer(optimizer)
        return None if known is None else known.number

    def optimizer_place(self, optimizer: torch.optim.Optimizer) -> Place | None:
        """Return the line that constructed a live optimizer, outside its own ``__init__``."""
        known = self._histories.of_optimizer(optimizer)
        return None if known is None else self.place(known.spot)

    def group_place(self, optimizer: torch.optim.Optimizer, group: int) -> Place | None:
        """Return the line that added a parameter group, by its index."""
        known = self._histories.of_optimizer(optimizer)
        return None if known is None or group >= len(known.groups) else self.place(known.groups[group])

    @property
    def backward_place(self) -> Place | None:
        """Return the line of the first backward."""
        return self.place(self._backward)

    @property
    def low_default(self) -> Place | None:
        """Return the line that last made a format below float32 the default, whether or not it still is."""
        return self.place(self._low_default)

    def on_backward(self, callback: OnBackward) -> None:
        """Call ``callback(losses, place)`` before each backward from now on."""
        self._callbacks.append(callback)

    def excerpts(self, places: Iterable[Place]) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
        """Return the source around places as (file, first line, lines)."""
        return self.source.excerpts(places)

    def cuts_in(self, place: Place) -> tuple[Place, ...]:
        """Return the lines that cut the graph of the loss whose backward a place calls."""
        return self.source.cuts_in(place)

    def dtype_constant(self, place: Place) -> Place | None:
        """Return the assignment that names the format of a cast, where its line takes it from a constant."""
        if place not in self._constants:
            self._constants[place] = self.source.dtype_constant(place)
        return self._constants[place]

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Provenance:
        self._active = True
        self._hook = register_module_parameter_registration_hook(self._on_registration)
        self._patches.wrap(nn.Module, "_apply", self._around_apply)
        self._patches.wrap(nn.Module, "__setstate__", self._around_setstate)
        self._patches.wrap(nn.Parameter, "__deepcopy__", self._around_deepcopy)
        self._patches.wrap(torch.optim.Optimizer, "__init__", self._around_construction)
        self._patches.wrap(torch.optim.Optimizer, "add_param_group", self._around_group)
        self._patches.wrap(torch, "set_default_dtype", self._around_default)
        self._patches.wrap(torch.autograd, "backward", self._around_backward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._active = False
        self._hook.remove()
        self._patches.undo()

    # ------------------------------------------------------------------ wrappers: pass everything through

    def _around_apply(self, original: Any) -> Any:
        def wrapper(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not self._active or self._applying:
                return original(module, *args, **kwargs)
            self._applying = True
            try:
                before = self._quietly(self._formats_of, module)
                result = original(module, *args, **kwargs)
                self._quietly(self._note_casts, before or (), sys._getframe(1))
            finally:
                self._applying = False
            return result

        return wrapper

    def _around_setstate(self, original: Any) -> Any:
        def wrapper(module: nn.Module, state: Any) -> None:
            original(module, state)
            if self._active:
                self._quietly(self._note_copy, module, sys._getframe(1))

        return wrapper

    def _around_deepcopy(self, original: Any) -> Any:
        def wrapper(parameter: nn.Parameter, memo: Any) -> Any:
            result = original(parameter, memo)
            history = self._histories.of(parameter) if self._active else None
            if history is not None:
                self._copies[id(result)] = history
            return result

        return wrapper

    def _around_construction(self, original: Any) -> Any:
        def wrapper(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            if self._active:
                self._quietly(self._note_optimizer, optimizer, sys._getframe(1))
            original(optimizer, *args, **kwargs)

        return wrapper

    def _around_group(self, original: Any) -> Any:
        def wrapper(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            result = original(optimizer, *args, **kwargs)
            if self._active:
                self._quietly(self._note_group, optimizer, sys._getframe(1))
            return result

        return wrapper

    def _around_default(self, original: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> None:
            before = torch.get_default_dtype()
            original(*args, **kwargs)
            if self._active:
                self._quietly(self._note_default, before, sys._getframe(1))

        return wrapper

    def _around_backward(self, original: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self._active or self._in_backward:  # checkpointing calls backward inside backward
                return original(*args, **kwargs)
            self._in_backward = True
            try:
                self._quietly(
                    self._note_backward, args[0] if args else kwargs.get("tensors"), sys._getframe(1)
                )
                return original(*args, **kwargs)
            finally:
                self._in_backward = False

        return wrapper

    def _quietly(self, note: Callable[..., _Result], *args: Any) -> _Result | None:
        """Record something; whatever goes wrong with that is no matter of the run."""
        try:
            return note(*args)
        except Exception as error:
            sentence = f"{note.__name__} failed: {type(error).__name__}: {error}"
            if sentence not in self.limits:
                self.limits.append(sentence)
            return None

    # ------------------------------------------------------------------ notes

    def _on_registration(self, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        self._quietly(self._note_registration, module, name, parameter, sys._getframe(1))

    def _note_registration(
        self, module: nn.Module, name: str, parameter: nn.Parameter, frame: FrameType
    ) -> None:
        history = self._histories.of(parameter)
        if history is None:
            spot, passed = self._innermost(frame)
            before = module._parameters.get(name)
            origin = None if before is None or before is parameter else self._histories.of(before)
            history = self._new(parameter, spot, passed)
            if before is not None and before is not parameter:
                history.replaced = spot
            if before is not None and before.dtype != parameter.dtype:
                how = _loading(passed) or "replaced"
                history.cast = Change(_format(before.dtype), _format(parameter.dtype), how, spot)
            elif origin is not None and _loading(passed):
                history.cast = origin.cast
            if origin is not None and _loading(passed):
                history.created = origin.created
            self._histories.remember(parameter, history)
        history.homes.append((weakref.ref(module), name))

    def _new(self, parameter: Tensor, spot: Spot | None, passed: list[str]) -> ParameterHistory:
        """Return the history of a parameter that was not there before."""
        self._count += 1
        history = ParameterHistory(spot, self._count, parameter.dtype)
        if _is_low(parameter.dtype):
            now = _format(parameter.dtype)
            if self._default is not None and self._default.after == now:
                history.cast = self._default
            else:
                history.cast = Change("", now, _loading(passed) or "created", spot)
        return history

    def _formats_of(
        self, module: nn.Module
    ) -> list[tuple[nn.Module, str, int, torch.dtype, ParameterHistory | None]]:
        return [
            (owner, name, id(parameter), parameter.dtype, self._histories.of(parameter))
            for owner in module.modules()
            for name, parameter in owner._parameters.items()
            if parameter is not None
        ]

    def _note_casts(
        self,
        before: Sequence[tuple[nn.Module, str, int, torch.dtype, ParameterHistory | None]],
        frame: FrameType,
    ) -> None:
        spot: Spot | None = None
        passed: list[str] | None = None
        for owner, name, key, dtype, history in before:
            parameter = owner._parameters.get(name)
            if parameter is None or (id(parameter) == key and parameter.dtype == dtype):
                continue
            if passed is None:
                spot, passed = self._innermost(frame)
            if history is None:
                history = ParameterHistory(None, 0, dtype)
            if id(parameter) != key:  # moved to a new tensor: an optimizer made before holds the old one
                self._count += 1
                history = copy.copy(history)
                history.number, history.replaced = self._count, spot
            if parameter.dtype != dtype:
                method = next((f"module.{n}" for n in passed if n in _MODULE_CASTS), "module._apply")
                how = _loading(passed) or method
                history.cast = Change(_format(dtype), _format(parameter.dtype), how, spot)
                history.dtype = parameter.dtype
            history.homes = [*history.homes, (weakref.ref(owner), name)]
            self._histories.remember(parameter, history)

    def _note_copy(self, module: nn.Module, frame: FrameType) -> None:
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            history = self._histories.of(parameter)  # shared with the original, or tied and met already
            if history is None:
                origin = self._copies.pop(id(parameter), None)
                history = self._new(parameter, *self._innermost(frame))
                if origin is not None and origin.dtype == parameter.dtype:
                    history.created, history.cast = origin.created, origin.cast
                self._histories.remember(parameter, history)
            history.homes.append((weakref.ref(module), name))

    def _note_optimizer(self, optimizer: torch.optim.Optimizer, frame: FrameType) -> None:
        self._count += 1
        spot = self._innermost(_outside(optimizer, frame))[0]
        self._histories.construct(optimizer, self._count, spot)

    def _note_group(self, optimizer: torch.optim.Optimizer, frame: FrameType) -> None:
        known = self._histories.of_optimizer(optimizer)
        if known is not None:
            known.groups.append(self._innermost(_outside(optimizer, frame))[0])
            for parameter in optimizer.param_groups[-1]["params"]:
                history = self._histories.of(parameter)
                if history is not None:
                    known.held[id(parameter)] = history

    def _note_default(self, before: torch.dtype, frame: FrameType) -> None:
        now = torch.get_default_dtype()
        self._default = None
        if _is_low(now):
            spot = self._innermost(frame)[0]
            self._default, self._low_default = (
                Change(_format(before), _format(now), "default dtype", spot),
                spot,
            )

    def _note_backward(self, tensors: Any, frame: FrameType) -> None:
        spot = self._innermost(frame)[0]
        self._backward = self._backward or spot
        several = (
            tensors if isinstance(tensors, (list, tuple)) else [tensors]
        )  # an iterator is not ours to use up
        losses = [tensor for tensor in several if isinstance(tensor, Tensor)]
        place = self.place(spot)
        for callback in self._callbacks:
            callback(losses, place)

    # ------------------------------------------------------------------ lines

    def _innermost(self, frame: FrameType | None) -> tuple[Spot | None, list[str]]:
        spot, passed = self.code.innermost(frame)
        if spot is not None:
            self._files[spot.file] = None
        return spot, passed

    def place(self, spot: Spot | None) -> Place | None:
        """Return the place of a spot, with its source."""
        if spot is None:
            return None
        if spot not in self._places:
            self._places[spot] = self.source.place(*spot)
        return self._places[spot]


def _outside(optimizer: torch.optim.Optimizer, frame: FrameType | None) -> FrameType | None:
    """Return the frame that called the optimizer's constructor, which may be the user's own class."""
    constructors = (kind.__dict__.get("__init__") for kind in type(optimizer).__mro__)
    own = {getattr(inspect.unwrap(init), "__code__", None) for init in constructors if init is not None}
    while frame is not None and (frame.f_code in own or frame.f_code.co_filename == HIDDEN):
        frame = frame.f_back
    return frame


def _loading(passed: list[str]) -> str:
    """Return the loading function among those that a registration or a cast came through."""
    return next((name for name in ("from_pretrained", "load_state_dict") if name in passed), "")


def _is_low(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize < 4


def _format(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.").removeprefix("float8_")
