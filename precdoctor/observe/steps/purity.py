"""What a copy of an optimizer could still reach: the run itself, through its code's globals and closures.

Its step is about to be run on copies of its tensors. Code that takes the model from a global variable would
train the real one; such optimizers are not replayed.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import types
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_known: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def impurity(kind: type) -> str:
    """Return why stepping a copy might change the run itself; empty where nothing in the code suggests it.

    A step that takes the model from a global variable would train the real one.
    """
    if kind not in _known:
        functions = [
            getattr(value, "__func__", value)
            for owner in kind.__mro__
            if not _is_library(owner.__module__)
            for value in vars(owner).values()
        ]
        seen: set[types.CodeType] = set()
        found = (_reaches(inspect.unwrap(f), seen) for f in functions if callable(f))
        _known[kind] = next(filter(None, found), "")
    return _known[kind]


def _reaches(function: Any, seen: set[types.CodeType]) -> str:
    if not isinstance(function, types.FunctionType) or function.__code__ in seen:
        return ""
    seen.add(function.__code__)
    if holds_run(function):
        return f"its {function.__name__} uses a model, tensors or an optimizer from around it"
    for instruction in _instructions(function.__code__):
        name = str(instruction.argval)
        if instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            return f"its {function.__name__} writes the global {name!r}"
        if instruction.opname == "STORE_DEREF" and name in function.__code__.co_freevars:
            return f"its {function.__name__} writes {name!r} outside of it"
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            value = function.__globals__.get(name)
            if _is_of_run(value):
                return f"its {function.__name__} uses the global {name!r}"
            if isinstance(value, types.FunctionType) and not _is_library(value.__module__):
                why = _reaches(inspect.unwrap(value), seen)
                if why:
                    return why
    return ""


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


def holds_run(function: Any) -> bool:
    """Tell whether a callable carries parts of the run: its closure, its bound arguments, its object."""
    if isinstance(function, functools.partial):
        held = [function.func, *function.args, *function.keywords.values()]
        return any(_is_of_run(value) for value in held)
    if isinstance(function, types.MethodType):
        return True
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty cell
            if _is_of_run(cell.cell_contents):
                return True
    return False


def _is_of_run(value: Any, depth: int = 0) -> bool:
    kind = type(value)
    if issubclass(kind, (nn.Module, torch.optim.Optimizer, Tensor)):
        return True
    if kind in (functools.partial, types.MethodType):
        return holds_run(value)
    if depth < 2 and kind in (list, tuple, set, dict):
        items = list(value.values()) if kind is dict else list(value)
        return any(_is_of_run(item, depth + 1) for item in items[:64])
    return False


def _is_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in ("torch", "builtins", "math", "numpy", "typing")
