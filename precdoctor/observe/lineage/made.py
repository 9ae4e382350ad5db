"""Tensors made from parameters and constants, with the operations that made them, which can be run again."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from precdoctor.observe.frames import Spot
from precdoctor.observe.probe.operations import tensors_in

#: what a made tensor's elements are: of the parameter's own resolution, on a grid, or shared by many (scales)
Values = Literal["continuous", "rounded", "scale"]


def storage_key(tensor: Tensor) -> int:
    """Return the identity of a tensor's memory, which views and ``.data`` share."""
    return int(tensor.untyped_storage()._cdata)


class Memory:
    """A weak reference to a tensor's memory; while it lives, no other memory has the same key."""

    __slots__ = ("_ref", "key")

    def __init__(self, tensor: Tensor) -> None:
        self._ref = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self.key = storage_key(tensor)

    @property
    def gone(self) -> bool:
        """Tell whether the memory was let go of."""
        return bool(self._ref.expired())  # type: ignore[no-untyped-call]

    def storage(self) -> torch.UntypedStorage | None:
        """Return the memory while it lives."""
        found: torch.UntypedStorage | None = torch.UntypedStorage._new_with_weak_ptr(self._ref.cdata)
        return found


@dataclass(slots=True, eq=False)
class Root:
    """A trainable parameter, known by its storage."""

    memory: Memory
    parameter: weakref.ref[Tensor]
    shape: tuple[int, ...]
    numel: int
    dtype: torch.dtype

    #: random numbers were written into it
    drawn: bool = False
    #: other values were copied into it: loaded, or set on purpose
    loaded: bool = False

    def alive(self) -> Tensor | None:
        """Return the parameter while it lives in the same memory: a cast model is another one."""
        parameter = self.parameter()
        return parameter if parameter is not None and storage_key(parameter) == self.memory.key else None


@dataclass(slots=True, eq=False)
class Ref:
    """A tensor argument of a recorded operation: the geometry of a view of a made tensor or of a root."""

    base: Made | Root
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


@dataclass(slots=True, eq=False)
class Made:
    """A tensor that an operation made from parameters and constants."""

    memory: Memory
    roots: frozenset[Root]
    values: Values
    #: optimizer steps made before
    step: int
    func: Any
    #: arguments, tensors in them replaced by `Ref` where they are made or roots themselves
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: which of the operation's outputs this is; None: its first argument, written in place
    output: int | None
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    #: the user's line where a parameter enters the chain, and the function that was called there
    entry: Entry | None
    #: elements of the largest view of a parameter that went in; a result of less than half as many is a scale
    span: int = 0
    #: the user's line of this operation, kept where it rounds
    spot: Spot | None = None
    #: the last operation of the chain that rounded what was continuous before
    rounded: Made | None = None
    #: the 16-bit format that the chain last went through
    narrow: torch.dtype | None = None
    #: the value as a sum of others: what a straight-through estimator adds and takes away again
    terms: dict[Made | Root, float] = field(default_factory=dict)
    #: autograd recorded the operation
    graded: bool = True
    #: random numbers went into it: stochastic rounding, or noise
    random: bool = False
    #: a sample of the codes: of what the last rounding, or the last change of codes to others, gave
    codes: Tensor | None = None


@dataclass(slots=True, eq=False)
class Entry:
    """Where a parameter enters a chain of operations."""

    #: the innermost line of a module's own method, else the innermost of the user's lines
    spot: Spot
    #: the innermost of the user's lines: inside the quantizer, where that is a function of its own
    inner: Spot
    #: the parameter was cut off there: taken without its history, or under no_grad
    cut: bool


class CannotRemake(Exception):
    """A parameter's quantizer can't be run again; the text says why."""


def remade(made: Made) -> Tensor:
    """Run the operations again that made a tensor, on the parameters as now; raises `CannotRemake`."""
    return _Remaking().tensor(made)


class _Remaking:
    def __init__(self) -> None:
        self._done: dict[int, Tensor] = {}

    def tensor(self, made: Made) -> Tensor:
        """Return the value of a made tensor, in the geometry it was made in."""
        known = self._done.get(id(made))
        if known is not None:
            return known
        todo = [made]
        while todo:
            current = todo[-1]
            if id(current) in self._done:
                todo.pop()
                continue
            missing = [parent for parent in parents(current) if id(parent) not in self._done]
            if missing:
                todo.extend(missing)
                continue
            self._done[id(current)] = self._run(todo.pop())
        return self._done[id(made)]

    def _run(self, made: Made) -> Tensor:
        schema = getattr(made.func, "_schema", None)
        written = [
            a.alias_info is not None and a.alias_info.is_write for a in getattr(schema, "arguments", ())
        ]
        if any(written[1:]) or (any(written) and made.output is not None):
            raise CannotRemake("it writes into memory of the program")
        args = tuple(self._value(a) for a in made.args)
        kwargs = {key: self._value(value) for key, value in made.kwargs.items()}
        if made.output is None:
            args = (args[0].clone(), *args[1:])
            made.func(*args, **kwargs)
            return args[0]  # type: ignore[no-any-return]
        out = list(tensors_in((made.func(*args, **kwargs),)))[made.output]
        if tuple(out.shape) != made.size:
            raise CannotRemake("it gives another shape than before")
        return out

    def _value(self, value: Any) -> Any:
        if isinstance(value, Ref):
            base = self._base(value.base)
            if base.is_quantized:
                raise CannotRemake("a tensor of torch's own quantized formats has no views")
            if base.dtype != value.dtype:
                base = base.reshape(-1).view(value.dtype)
            return base.as_strided(value.size, value.stride, value.offset)
        if isinstance(value, (list, tuple)):
            return type(value)(self._value(v) for v in value)
        return value

    def _base(self, base: Made | Root) -> Tensor:
        if isinstance(base, Made):
            return self._done[id(base)]
        parameter = base.alive()
        if parameter is None:
            raise CannotRemake("the parameter is gone")
        return parameter.detach()


def recipe(made: Made) -> tuple[Any, ...] | None:
    """Return what two tensors have in common that were made alike; None where that can't be told."""
    parts = _recipe((made.args, tuple(sorted(made.kwargs.items()))))
    return None if parts is None else (made.func, made.output, *parts)


def _recipe(values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    found: list[Any] = []
    for value in values:
        if isinstance(value, Ref):
            found.append((id(value.base), value.size, value.stride, value.offset, value.dtype))
        elif isinstance(value, (list, tuple)):
            found.append(_recipe(tuple(value)))
        elif isinstance(value, Tensor):
            return None
        else:
            found.append((type(value), repr(value)))
    return None if None in found else tuple(found)


def parents(made: Made) -> list[Made]:
    """Return the made tensors among the arguments of the operation that made one."""
    return [r.base for r in _refs((*made.args, *made.kwargs.values())) if isinstance(r.base, Made)]


def _refs(values: Any) -> list[Ref]:
    found = []
    for value in values:
        if isinstance(value, Ref):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(_refs(value))
    return found
