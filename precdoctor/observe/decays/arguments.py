"""The number that a line of the program gives a call, read from the line and its frame.

`torch.tensor(x, dtype=...)` has rounded a number of Python before the dispatcher sees anything. A wrapper
would see it, but `torch.tensor` must stay itself: `torch.jit.script`, dynamo, modes of default devices and
what programs override know it by identity. So the expression is read where the call stands, and looked up
without running anything of the program: no property, no operator of its classes.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import math
import operator
import sys
from collections.abc import Callable
from types import FrameType, MemberDescriptorType, ModuleType
from typing import Any

#: names of calls looked for where Python does not tell which call of a line runs (before 3.11)
_MAKERS = frozenset(("tensor", "as_tensor", "asarray", "new_tensor"))
_OPERATORS: dict[type[ast.operator], Callable[[float, float], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
#: functions that are pure
_FUNCTIONS = (float, *(f for f in vars(math).values() if inspect.isbuiltin(f)))


class _Unreadable(Exception):
    """An expression's value can't be known without running it."""


def first_number(frame: FrameType) -> float | None:
    """Return the number that the call which a frame is in the middle of was given first; None if unknown."""
    call = _call(frame)
    if call is None:
        return None
    given = [*call.args, *(k.value for k in call.keywords if k.arg in ("data", "obj"))]
    try:
        return _number(given[0], frame) if given else None
    except (_Unreadable, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def _call(frame: FrameType) -> ast.Call | None:
    calls = _calls(frame.f_code.co_filename)
    if sys.version_info >= (3, 11):
        positions = list(frame.f_code.co_positions())[frame.f_lasti // 2]
        found = [c for c in calls if (c.lineno, c.end_lineno, c.col_offset, c.end_col_offset) == positions]
    else:
        line = frame.f_lineno
        near = [c for c in calls if c.lineno <= line <= (c.end_lineno or c.lineno)]
        found = [c for c in near if getattr(c.func, "attr", getattr(c.func, "id", "")) in _MAKERS]
    return found[0] if len(found) == 1 else None


@functools.lru_cache(maxsize=16)
def _calls(file: str) -> tuple[ast.Call, ...]:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError, RecursionError):
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _number(node: ast.expr, frame: FrameType) -> float:
    if isinstance(node, (ast.List, ast.Tuple)) and len(node.elts) == 1:
        return _number(node.elts[0], frame)
    value = _value(node, frame)
    if not isinstance(value, (int, float)):
        raise _Unreadable
    return float(value)


def _value(node: ast.expr, frame: FrameType) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return _variable(node.id, frame)
        case ast.Attribute():
            base = _value(node.value, frame)
            found = inspect.getattr_static(base, node.attr)
            return found.__get__(base) if isinstance(found, MemberDescriptorType) else found
        case ast.Subscript():
            base, key = _value(node.value, frame), _value(node.slice, frame)
            if type(base) not in (dict, list, tuple) or type(key) not in (str, int):
                raise _Unreadable
            return base[key]
        case ast.UnaryOp(op=ast.USub()):
            return -_number(node.operand, frame)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](_number(node.left, frame), _number(node.right, frame))
        case ast.Call(args=[argument], keywords=[]) if _function(node.func, frame) in _FUNCTIONS:
            return _function(node.func, frame)(_number(argument, frame))
    raise _Unreadable


def _function(node: ast.expr, frame: FrameType) -> Any:
    if isinstance(node, ast.Attribute) and not isinstance(_value(node.value, frame), ModuleType):
        raise _Unreadable
    return _value(node, frame)


def _variable(name: str, frame: FrameType) -> Any:
    code = frame.f_code
    if not code.co_flags & inspect.CO_OPTIMIZED:  # a module, or the body of a class
        return {**frame.f_builtins, **frame.f_globals, **frame.f_locals}[name]
    if name not in (*code.co_varnames, *code.co_cellvars, *code.co_freevars):
        return frame.f_globals[name] if name in frame.f_globals else frame.f_builtins[name]
    values = frame.f_locals
    found = values[name]
    # before Python 3.13 this is a copy that the frame keeps: it would hold what the function lets go of; one
    # that the program has by `locals()` is the program's
    if sys.version_info < (3, 13) and sys.getrefcount(values) <= 3:
        values.clear()
    return found
