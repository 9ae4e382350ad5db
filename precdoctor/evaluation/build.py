"""Load ``eval.py:build``: run a file of the user's, call a function in it, and check what it returns."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from precdoctor.evaluation.evaluation import Evaluation, EvaluationError, first_line

_FORM = "give FILE.py:FUNCTION, such as eval.py:build"


def load(target: str) -> Evaluation:
    """Return what the function returns: (model, batches, loss). Raises `EvaluationError`, one line each.

    The file is run as a module, not as ``__main__``, with its folder first on ``sys.path``; what it prints
    goes to stderr, since stdout is the report's.
    """
    name, colon, function = target.rpartition(":")
    if not colon or not name or not function.isidentifier():
        raise EvaluationError(f"{target}: {_FORM}")
    path = Path(name)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "no such file"
        raise EvaluationError(f"{name}: {what}; {_FORM}")
    if path.suffix != ".py":
        raise EvaluationError(f"{name}: not a Python file; {_FORM}")
    with contextlib.redirect_stdout(sys.stderr):
        module = _imported(path, name)
        build = getattr(module, function, None)
        if build is None:
            raise EvaluationError(f"{name}: has no function {function!r}{_functions(module)}")
        if not callable(build):
            raise EvaluationError(f"{name}: {function!r} is a {type(build).__name__}, not a function")
        returned = _called(build, target, path)
    if not isinstance(returned, (tuple, list)) or len(returned) != 3:
        raise EvaluationError(
            f"{target}: {function}() returned {_described(returned)}; it must return (model, batches, loss)"
        )
    return Evaluation.of(*returned, name=target)


def _imported(path: Path, name: str) -> types.ModuleType:
    absolute = path.resolve()
    folder = str(absolute.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # and stays: batches may import when they are read
    # a file called json.py must not become json for everyone else
    own = path.stem if path.stem not in sys.modules else f"_precdoctor_{path.stem}"
    spec = importlib.util.spec_from_file_location(own, absolute)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module  # dataclasses and pickles of workers look there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise EvaluationError(f"{name}:{error.lineno}: not valid Python: {error.msg}") from None
    except (Exception, SystemExit) as error:
        raise EvaluationError(f"{_place(error, absolute, name)}: {_raised(error)} when it was run") from None
    return module


def _called(build: Callable[[], Any], target: str, path: Path) -> Any:
    try:
        return build()
    except (Exception, SystemExit) as error:
        where = _place(error, path.resolve(), str(path))
        raise EvaluationError(
            f"{where}: {_raised(error)} in {target.rpartition(':')[2]}(), which is called without arguments"
        ) from None


def _raised(error: BaseException) -> str:
    kind = type(error).__name__
    text = first_line(error)
    return kind if text == kind else f"{kind}: {text}"


def _place(error: BaseException, path: Path, name: str) -> str:
    """Return "eval.py:12", the innermost line of the user's file that led there."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path
    ]
    return f"{name}:{lines[-1]}" if lines else name


def _functions(module: types.ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__
    ]
    return f"; it has {', '.join(own[:8])}" if own else ", nor any other function"


def _described(value: object) -> str:
    if isinstance(value, (tuple, list)):
        kinds = ", ".join(type(item).__name__ for item in value[:6])
        return f"{len(value)} values ({kinds})" if value else "nothing in a tuple"
    return "None" if value is None else f"one {type(value).__name__}"
