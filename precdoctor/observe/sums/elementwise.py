"""Sums and averages are made of a few elementwise operations; here each is taken apart and done in float64.

Only a sample of the elements is looked at: positions in the logical order of the result, so that tensors
of one shape agree whatever their layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from precdoctor.observe.watch import Watch

#: elements of a tensor that are looked at
SAMPLE = 1024
#: operations, and the names of their scalar argument; what they compute is in `exact`
_SCALAR = {
    "add": "alpha",
    "sub": "alpha",
    "rsub": "alpha",
    "mul": "",
    "div": "",
    "neg": "",
    "lerp": "",
    "addcmul": "value",
    "addcdiv": "value",
    "copy": "",
    "clone": "",
    "to_copy": "",
    "clamp": "",
    "clamp_min": "",
    "clamp_max": "",
}


class Kind(NamedTuple):
    """What an operation's name says."""

    op: str
    in_place: bool
    foreach: bool


def _kinds() -> dict[str, Kind]:
    kinds = {}
    for op in _SCALAR:
        plain = "aten::_to_copy" if op == "to_copy" else f"aten::{op}"
        kinds[plain] = Kind(op, False, False)
        kinds[f"aten::{op}_"] = Kind(op, True, False)
        kinds[f"aten::_foreach_{op}"] = Kind(op, False, True)
        kinds[f"aten::_foreach_{op}_"] = Kind(op, True, True)
    return kinds


#: by the operation's name without its overload
KINDS = _kinds()


#: operations that add to elements by their index
SCATTERS = frozenset(("aten::index_add_", "aten::scatter_add_", "aten::index_put_", "aten::_index_put_impl_"))


@dataclass(slots=True)
class Call:
    """One elementwise operation on one tensor; a foreach operation is several."""

    op: str
    in_place: bool
    #: tensors and numbers, the one that is written first
    operands: tuple[Any, ...]
    #: alpha, value or weight
    factor: Any
    #: the result; of an operation in place, the tensor that it writes
    out: Tensor


def calls(kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Call]:
    """Yield the operations on single tensors that one call consists of; ``out`` is None before it runs."""
    if kwargs.get("rounding_mode") is not None:
        return
    if not kind.foreach:
        found = _call(kind, args, kwargs, args[0] if kind.in_place else out)
        if found is not None:
            yield found
        return
    targets = args[0]
    results = targets if kind.in_place else (out or ())
    for index, result in enumerate(results):
        each = tuple(_at(value, index) for value in args)
        found = _call(kind, each, {key: _at(value, index) for key, value in kwargs.items()}, result)
        if found is not None:
            yield found


def _at(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, (list, tuple)) else value


def _call(kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Call | None:
    if not isinstance(out, Tensor) or not args:
        return None
    op = kind.op
    factor: Any = 1.0
    if op in ("lerp", "addcmul", "addcdiv"):
        rest = list(args)
        if op == "lerp":
            factor = rest.pop() if len(rest) == 3 else kwargs.get("weight")
        else:
            factor = rest.pop() if len(rest) == 4 else kwargs.get("value", 1.0)
        return Call(op, kind.in_place, tuple(rest), factor, out)
    if op in ("neg", "clone", "to_copy"):
        return Call(op, kind.in_place, args[:1], 1.0, out)
    if op == "copy":
        return Call(op, kind.in_place, args[1:2], 1.0, out)
    if op.startswith("clamp"):
        bounds = _bounds(op, args, kwargs)
        return (
            None
            if any(isinstance(b, Tensor) for b in bounds)
            else Call(op, kind.in_place, args[:1], bounds, out)
        )
    factor = kwargs.get("alpha", args[2] if len(args) > 2 else 1.0)
    return Call(op, kind.in_place, args[:2], factor, out)


def _bounds(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Return the lower and the upper bound of a clamp, infinite where there is none."""
    names = {"clamp": ("min", "max"), "clamp_min": ("min",), "clamp_max": ("max",)}[op]
    given = {**kwargs, **dict(zip(names, args[1:], strict=False))}
    low, high = given.get("min"), given.get("max")
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def exact(op: str, values: list[Any], factor: Any) -> Any:
    """Return what an operation computes from float64 samples and numbers, in float64."""
    match op:
        case "add":
            return values[0] + factor * values[1]
        case "sub":
            return values[0] - factor * values[1]
        case "rsub":
            return values[1] - factor * values[0]
        case "mul":
            return values[0] * values[1]
        case "div":
            return values[0] / values[1]
        case "neg":
            return -values[0]
        case "lerp":
            return values[0] + factor * (values[1] - values[0])
        case "addcmul":
            return values[0] + factor * values[1] * values[2]
        case "addcdiv":
            return values[0] + factor * values[1] / values[2]
        case "clamp" | "clamp_min" | "clamp_max":
            low, high = factor
            value = values[0]
            return value.clamp(low, high) if isinstance(value, Tensor) else min(max(value, low), high)
        case _:
            return values[0]


def scattered(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return what an addition by index makes, in float64; None where it sets elements instead."""
    if "put" in func._schema.name and not (args[3] if len(args) > 3 else kwargs.get("accumulate", False)):
        return None

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    target: Tensor = args[0].double()
    func(target, *(wide(v) for v in args[1:]), **{k: wide(v) for k, v in kwargs.items()})
    return target


def slopes(op: str, values: list[Any], factor: Any) -> list[float]:
    """Return by how much a result changes with each of the operands; NaN where that differs by element."""
    number = _number(factor)  # of a clamp NaN, and not asked for
    match op:
        case "add":
            return [1.0, number]
        case "sub":
            return [1.0, -number]
        case "rsub":
            return [-number, 1.0]
        case "mul":
            return [_number(values[1]), _number(values[0])]
        case "div":
            divisor = _number(values[1])
            return [1.0 / divisor if divisor else float("nan"), float("nan")]
        case "neg":
            return [-1.0]
        case "lerp":
            return [1.0 - number, number]
        case "addcmul" | "addcdiv":
            return [1.0, float("nan"), float("nan")]
        case _:
            return [1.0]


def _number(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type == "cpu":
        return float(value)
    return float(value) if isinstance(value, (int, float)) else float("nan")


class Sampler:
    """Takes samples of tensors; positions are worked out once for each shape."""

    def __init__(self, limit: int = SAMPLE) -> None:
        self._limit = limit
        self._known: dict[tuple[Any, ...], tuple[Watch, tuple[Tensor, ...]]] = {}

    def __call__(self, value: Any, shape: torch.Size) -> Any:
        """Return a float64 copy of the watched elements, spread to ``shape``; of one element, a number.

        Of one on an accelerator a tensor, since reading it would wait for the device.
        """
        if not isinstance(value, Tensor):
            return float(value)
        value = value.detach()
        if value.numel() == 1 and shape.numel() > 1 and value.device.type == "cpu":
            return float(value)
        if shape.numel() <= self._limit or value.numel() == 1:
            spread = value if value.shape == shape else value.expand(shape)
            return spread.reshape(-1).to(torch.float64, copy=True)
        watch, index = self._of(shape, value.device)
        if value.shape == shape and value.is_contiguous():
            return watch.view(value).reshape(-1).to(torch.float64, copy=True)
        return value.expand(shape)[index].to(torch.float64)

    def _of(self, shape: torch.Size, device: torch.device) -> tuple[Watch, tuple[Tensor, ...]]:
        key = (shape, device)
        if key not in self._known:
            if len(self._known) > 512:
                self._known.clear()
            watch = Watch.of(shape.numel(), self._limit)
            positions = torch.tensor([watch.position(i) for i in range(watch.count)], device=device)
            self._known[key] = (watch, torch.unravel_index(positions, shape))
        return self._known[key]
