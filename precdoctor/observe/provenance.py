"""Provenance: which line of the user's code made a parameter, cast it, built its optimizer, called backward.

Recorded as it happens, in place of a few functions of torch that are put back at the end; nothing runs
per step but a look at the caller of each backward. No weak reference to a tensor is held: torch refuses
to swap tensors that have one.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from precdoctor.evidence import Cast, Place
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.source import Source

_Result = TypeVar("_Result")
OnBackward = Callable[[Sequence[Tensor], Place | None], None]

#: Frames with such a file name are passed over when warnings count their stacklevel (bpo-24305) and when
#: dynamo looks for code to compile: a warning raised below our wrappers still points to the user's line.
_HIDDEN = "<frozen importlib._bootstrap precdoctor>"
_MODULE_CASTS = ("to", "half", "bfloat16", "float", "double", "type", "to_empty", "cuda", "cpu")


class _Change(NamedTuple):
    before: str
    after: str
    how: str
    spot: Spot | None


@dataclass(slots=True)
class _Record:
    """What is known of one parameter."""

    created: Spot | None
    #: position in the order of all constructions of the process
    number: int
    dtype: torch.dtype
    cast: _Change | None = None
    #: the (module, name) pairs it was registered under: proof that an id still means this parameter
    homes: list[tuple[weakref.ref[nn.Module], str]] = field(default_factory=list)


@dataclass(slots=True)
class _Construction:
    """What is known of one optimizer."""

    optimizer: weakref.ref[torch.optim.Optimizer]
    number: int
    spot: Spot | None
    groups: list[Spot | None] = field(default_factory=list)
    #: records of the parameters it holds, by id
    held: dict[int, _Record] = field(default_factory=dict)


class Provenance:
    """Records the user's lines while it is entered; afterwards torch is as it was.

    Ask while the objects live: nothing is kept alive. ``own`` are directories that count as the user's
    code even inside an installed package.
    """

    def __init__(self, *, own: Iterable[Path] = ()) -> None:
        #: what could not be recorded and why, in sentences
        self.limits: list[str] = []
        self.source = Source()
        self._code = UserCode(own)
        self._records: dict[int, _Record] = {}
        self._copies: dict[int, _Record] = {}
        self._constructions: dict[int, _Construction] = {}
        self._default: _Change | None = None
        self._backward: Spot | None = None
        self._callbacks: list[OnBackward] = []
        self._files: dict[str, None] = {}
        self._places: dict[Spot, Place] = {}
        self._count = 0
        self._active = self._applying = self._in_backward = False
        self._undo: list[Callable[[], None]] = []

    # ------------------------------------------------------------------ what is known

    def creation(self, parameter: Tensor) -> Place | None:
        """Return the line that created a live parameter."""
        record = self._record(parameter)
        return None if record is None else self._place(record.created)

    def cast(self, parameter: Tensor) -> Cast | None:
        """Return the change that gave a live parameter its present format; None where there was none.

        A change that left no trace, such as ``p.data = p.data.half()``, is searched in the user's source.
        """
        record, now = self._record(parameter), _format(parameter.dtype)
        if record is None:
            likely = self.source.likely_casts(self._files, now) if _is_low(parameter.dtype) else ()
            return Cast(before="", after=now, how="found in the source", place=likely[0]) if likely else None
        if record.dtype != parameter.dtype:
            found = self.source.data_assignments(self._files)
            before = _format(record.dtype)
            return Cast(before=before, after=now, how="data assignment", place=next(iter(found), None))
        change = record.cast
        if change is None:
            return None
        return Cast(before=change.before, after=change.after, how=change.how, place=self._place(change.spot))

    def created_at(self, parameter: Tensor) -> int | None:
        """Return a live parameter's place in the order of all parameters and optimizers of the process."""
        record = self._record(parameter)
        return None if record is None else record.number

    def constructed_at(self, optimizer: torch.optim.Optimizer) -> int | None:
        """Return a live optimizer's place in the same order."""
        known = self._construction(optimizer)
        return None if known is None else known.number

    def optimizer_place(self, optimizer: torch.optim.Optimizer) -> Place | None:
        """Return the line that constructed a live optimizer, outside its own ``__init__``."""
        known = self._construction(optimizer)
        return None if known is None else self._place(known.spot)

    def group_place(self, optimizer: torch.optim.Optimizer, group: int) -> Place | None:
        """Return the line that added a parameter group, by its index."""
        known = self._construction(optimizer)
        return None if known is None or group >= len(known.groups) else self._place(known.groups[group])

    @property
    def backward_place(self) -> Place | None:
        """Return the line of the first backward."""
        return self._place(self._backward)

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
        """Return the assignment of the dtype constant that the cast at a place uses."""
        return self.source.dtype_constant(place)

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Provenance:
        self._active = True
        self._undo.append(register_module_parameter_registration_hook(self._on_registration).remove)
        self._patch(nn.Module, "_apply", self._around_apply)
        self._patch(nn.Module, "__setstate__", self._around_setstate)
        self._patch(nn.Parameter, "__deepcopy__", self._around_deepcopy)
        self._patch(torch.optim.Optimizer, "__init__", self._around_construction)
        self._patch(torch.optim.Optimizer, "add_param_group", self._around_group)
        self._patch(torch, "set_default_dtype", self._around_default)
        self._patch(torch.autograd, "backward", self._around_backward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._active = False
        while self._undo:
            self._undo.pop()()

    def _patch(self, owner: Any, name: str, around: Callable[[Any], Any]) -> None:
        original = owner.__dict__[name]
        wrapper: Any = functools.wraps(original)(around(original))
        wrapper.__code__ = wrapper.__code__.replace(co_filename=_HIDDEN)
        setattr(owner, name, wrapper)

        def undo() -> None:
            if owner.__dict__.get(name) is wrapper:  # else somebody patched over it; ours has gone idle
                setattr(owner, name, original)

        self._undo.append(undo)

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
            record = self._record(parameter) if self._active else None
            if record is not None:
                self._copies[id(result)] = record
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
        record = self._record(parameter)
        if record is None:
            spot, passed = self._innermost(frame)
            before = module._parameters.get(name)
            origin = None if before is None or before is parameter else self._record(before)
            record = self._new(parameter, spot, passed)
            if before is not None and before.dtype != parameter.dtype:
                how = _loading(passed) or "replaced"
                record.cast = _Change(_format(before.dtype), _format(parameter.dtype), how, spot)
            elif origin is not None and _loading(passed):
                record.cast = origin.cast
            if origin is not None and _loading(passed):
                record.created = origin.created
            self._records[id(parameter)] = record
        record.homes.append((weakref.ref(module), name))

    def _new(self, parameter: Tensor, spot: Spot | None, passed: list[str]) -> _Record:
        """Return the record of a parameter that was not there before."""
        self._count += 1
        record = _Record(spot, self._count, parameter.dtype)
        if _is_low(parameter.dtype):
            now = _format(parameter.dtype)
            if self._default is not None and self._default.after == now:
                record.cast = self._default
            else:
                record.cast = _Change("", now, _loading(passed) or "created", spot)
        return record

    def _formats_of(self, module: nn.Module) -> list[tuple[nn.Module, str, int, torch.dtype, _Record | None]]:
        return [
            (owner, name, id(parameter), parameter.dtype, self._record(parameter))
            for owner in module.modules()
            for name, parameter in owner._parameters.items()
            if parameter is not None
        ]

    def _note_casts(
        self, before: Sequence[tuple[nn.Module, str, int, torch.dtype, _Record | None]], frame: FrameType
    ) -> None:
        spot: Spot | None = None
        passed: list[str] | None = None
        for owner, name, key, dtype, record in before:
            parameter = owner._parameters.get(name)
            if parameter is None or (id(parameter) == key and parameter.dtype == dtype):
                continue
            if passed is None:
                spot, passed = self._innermost(frame)
            if record is None:
                record = _Record(None, 0, dtype)
            if id(parameter) != key:  # moved to a new tensor: an optimizer made before holds the old one
                self._count += 1
                record = copy.copy(record)
                record.number = self._count
            if parameter.dtype != dtype:
                method = next((f"module.{n}" for n in passed if n in _MODULE_CASTS), "module._apply")
                how = _loading(passed) or method
                record.cast = _Change(_format(dtype), _format(parameter.dtype), how, spot)
                record.dtype = parameter.dtype
            record.homes = [*record.homes, (weakref.ref(owner), name)]
            self._records[id(parameter)] = record

    def _note_copy(self, module: nn.Module, frame: FrameType) -> None:
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            record = self._record(parameter)  # shared with the original, or tied and met already
            if record is None:
                origin = self._copies.pop(id(parameter), None)
                record = self._new(parameter, *self._innermost(frame))
                if origin is not None and origin.dtype == parameter.dtype:
                    record.created, record.cast = origin.created, origin.cast
                self._records[id(parameter)] = record
            record.homes.append((weakref.ref(module), name))

    def _note_optimizer(self, optimizer: torch.optim.Optimizer, frame: FrameType) -> None:
        self._count += 1
        spot = self._innermost(_outside(optimizer, frame))[0]
        self._constructions[id(optimizer)] = _Construction(weakref.ref(optimizer), self._count, spot)

    def _note_group(self, optimizer: torch.optim.Optimizer, frame: FrameType) -> None:
        known = self._construction(optimizer)
        if known is not None:
            known.groups.append(self._innermost(_outside(optimizer, frame))[0])
            for parameter in optimizer.param_groups[-1]["params"]:
                record = self._record(parameter)
                if record is not None:
                    known.held[id(parameter)] = record

    def _note_default(self, before: torch.dtype, frame: FrameType) -> None:
        now = torch.get_default_dtype()
        self._default = None
        if _is_low(now):
            spot = self._innermost(frame)[0]
            self._default = _Change(_format(before), _format(now), "default dtype", spot)

    def _note_backward(self, tensors: Any, frame: FrameType) -> None:
        spot = self._innermost(frame)[0]
        self._backward = self._backward or spot
        losses = [tensors] if isinstance(tensors, Tensor) else [t for t in tensors if isinstance(t, Tensor)]
        place = self._place(spot)
        for callback in self._callbacks:
            callback(losses, place)

    # ------------------------------------------------------------------ looking up

    def _record(self, parameter: Tensor) -> _Record | None:
        """Return the record of a live parameter; an id alone may be that of an earlier, dead one."""
        record = self._records.get(id(parameter))
        for reference, name in record.homes if record is not None else ():
            module = reference()
            if module is not None and module._parameters.get(name) is parameter:
                return record
        for known in self._constructions.values():
            record, optimizer = known.held.get(id(parameter)), known.optimizer()
            if record is not None and optimizer is not None:
                groups = optimizer.param_groups
                if any(held is parameter for group in groups for held in group["params"]):
                    return record
        return None

    def _construction(self, optimizer: torch.optim.Optimizer) -> _Construction | None:
        known = self._constructions.get(id(optimizer))
        return known if known is not None and known.optimizer() is optimizer else None

    def _innermost(self, frame: FrameType | None) -> tuple[Spot | None, list[str]]:
        spot, passed = self._code.innermost(frame)
        if spot is not None:
            self._files[spot.file] = None
        return spot, passed

    def _place(self, spot: Spot | None) -> Place | None:
        if spot is None:
            return None
        if spot not in self._places:
            self._places[spot] = self.source.place(*spot)
        return self._places[spot]


def _outside(optimizer: torch.optim.Optimizer, frame: FrameType | None) -> FrameType | None:
    """Return the frame that called the optimizer's constructor, which may be the user's own class."""
    constructors = (kind.__dict__.get("__init__") for kind in type(optimizer).__mro__)
    own = {getattr(inspect.unwrap(init), "__code__", None) for init in constructors if init is not None}
    while frame is not None and (frame.f_code in own or frame.f_code.co_filename == _HIDDEN):
        frame = frame.f_back
    return frame


def _loading(passed: list[str]) -> str:
    """Return the loading function among those that a registration or a cast came through."""
    return next((name for name in ("from_pretrained", "load_state_dict") if name in passed), "")


def _is_low(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize < 4


def _format(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.").removeprefix("float8_")
