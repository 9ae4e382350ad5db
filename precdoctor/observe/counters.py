"""Step counters that an optimizer keeps as tensors of a low format: read at the observed steps."""

from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from precdoctor.evidence import Counter, Place
from precdoctor.observe.frames import Spot
from precdoctor.observe.lineage.origins import LOW

#: parameters whose counters are read, of one optimizer, and readings kept of each
_MOST, _READINGS = 16, 4096


@dataclass(slots=True)
class CounterReadings:
    """The readings of one key of an optimizer's state, for one parameter."""

    dtype: torch.dtype
    #: (steps made before, value)
    values: list[tuple[int, Tensor]] = field(default_factory=list)


class Counters:
    """Reads the counters of one optimizer."""

    def __init__(self) -> None:
        #: by (parameter group, parameter, key); of group entries the parameter is -1
        self.found: dict[tuple[int, int, str], CounterReadings] = {}
        #: the line of the optimizer's own code that makes the counter, by key
        self.made: dict[str, tuple[Spot, bool]] = {}

    def note(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Read the counters before a step; ``steps`` were made."""
        for place, value in _counters(optimizer):
            known = self.found.get(place)
            if known is None:
                if len(self.found) >= _MOST:
                    continue
                known = self.found[place] = CounterReadings(value.dtype)
                self._note_line(optimizer, place[2])
            if len(known.values) >= _READINGS:
                del known.values[1::2]  # thinned out, the first stays
            known.values.append((steps, value.detach().reshape(()).clone()))

    def _note_line(self, optimizer: torch.optim.Optimizer, key: str) -> None:
        found = creation_in(type(optimizer), key)
        if found is not None and key not in self.made:
            self.made[key] = found

    def evidence(
        self, optimizer: int, names: dict[tuple[int, int], str], place: Callable[[Spot | None], Place | None]
    ) -> tuple[Counter, ...]:
        """Return what was read, counters that went alike together; ``names`` by group and parameter."""
        alike: dict[Counter, list[str]] = {}
        for (group, position, key), readings in self.found.items():
            made, named = self.made.get(key, (None, True))
            record = _record(optimizer, key, readings, place(made), default=not named)
            alike.setdefault(record, []).extend(n for n in (names.get((group, position)),) if n is not None)
        return tuple(replace(record, parameters=tuple(found)) for record, found in alike.items())


def _record(
    optimizer: int, key: str, readings: CounterReadings, made: Place | None, *, default: bool
) -> Counter:
    values = [(step, float(value)) for step, value in readings.values]
    (first_step, first), (last_step, last) = values[0], values[-1]
    stands_since = last_step
    for step, value in reversed(values):
        if value != last:
            break
        stands_since = step
    counted = [(step, value) for step, value in values if value != last]
    span = counted[-1][0] - first_step if counted else 0
    return Counter(
        optimizer=optimizer,
        key=key,
        format=str(readings.dtype).removeprefix("torch."),
        first_step=first_step,
        first_value=first,
        last_step=last_step,
        last_value=last,
        increment=(counted[-1][1] - first) / span if span else 0.0,
        stands_since=stands_since,
        made=made,
        default=default,
    )


def _counters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[tuple[int, int, str], Tensor]]:
    for index, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if _is_low(value):
                yield (index, -1, str(key)), value
        for position, parameter in enumerate(group["params"][:_MOST]):
            for key, value in optimizer.state.get(parameter, {}).items():
                if _is_low(value) and (parameter.numel() > 1 or value.ndim < parameter.ndim):
                    yield (index, position, str(key)), value


def _is_low(value: Any) -> bool:
    return type(value) is Tensor and value.numel() == 1 and value.dtype in LOW


def creation_in(kind: type, key: str) -> tuple[Spot, bool] | None:
    """Return the line of a class that stores something new under ``key``, and whether it names a format.

    A search in the source: ``state["step"] = torch.zeros(())``, ``dict(step=...)``, ``setdefault("step",
    ...)``.
    """
    try:
        file = inspect.getsourcefile(kind)
        tree = ast.parse("".join(linecache.getlines(file or "")))
    except (OSError, TypeError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
            for function in (f for f in node.body if isinstance(f, ast.FunctionDef)):
                for line, value in _stored(function, key):
                    return Spot(str(file), line, function.name), _names_format(value)
    return None


def _stored(function: ast.FunctionDef, key: str) -> Iterator[tuple[int, ast.expr]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Subscript) and _is(target.slice, key):
                    yield node.value.lineno, node.value
        elif isinstance(node, ast.Dict):
            for name, value in zip(node.keys, node.values, strict=True):
                if name is not None and _is(name, key):
                    yield value.lineno, value
        elif isinstance(node, ast.Call):
            yield from ((k.value.lineno, k.value) for k in node.keywords if k.arg == key)
            if len(node.args) == 2 and _is(node.args[0], key):
                yield node.args[1].lineno, node.args[1]


def _is(node: ast.expr, key: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == key


def _names_format(value: ast.expr) -> bool:
    """Tell whether an expression says what format it makes, by name or by a tensor that it is made like."""
    for node in ast.walk(value):
        if isinstance(node, ast.keyword) and node.arg == "dtype":
            return True
        if isinstance(node, (ast.Attribute, ast.Name)):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if (
                name.endswith("_like")
                or name.startswith("new_")
                or name in ("to", "half", "bfloat16", "clone")
            ):
                return True
    return False
