"""What can be run: a script, a module or a console command, found and prepared as ``python`` would."""

from __future__ import annotations

import builtins
import dataclasses
import importlib.util
import shutil
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent


class TargetError(ValueError):
    """The target is nothing that can be run; one line says why."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Something that ``python`` could run."""

    #: sys.argv[0] and sys.path[0] while it runs
    name: str
    folder: str
    #: fills the namespace of ``__main__`` and returns the code; may raise what the script is to blame for
    prepare: Callable[[types.ModuleType], types.CodeType]
    #: directories (or a file) of installed code that count as the user's, since they are what is run
    own: tuple[Path, ...] = ()


def from_path(target: str) -> Program:
    """Return the program in a script, or else of a console command on PATH; raises `TargetError`."""
    path = Path(target)
    own: tuple[Path, ...] = ()
    if not path.exists():
        found = shutil.which(target) if path.name == target else None
        if found is None:
            hint = "" if path.suffix or path.name != target else ", nor a command on PATH; modules need -m"
            raise TargetError(f"{target}: no such file{hint}")
        path, own = (
            Path(found),
            tuple(_home(e.module) for e in entry_points(group="console_scripts", name=target)),
        )
    if path.is_dir():
        raise TargetError(f"{target}: is a directory; give the script in it, or a package with -m")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise TargetError(f"{target}: {error.strerror}") from None
    file, failure = str(path.absolute()), None
    try:
        code = compile(source, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        if b"\0" in source or path.suffix not in (".py", ".pyw"):
            raise TargetError(f"{target}: not a Python program") from None
        failure = error
    if not own and ("site-packages" in path.parts or path.resolve().is_relative_to(_PACKAGE)):
        own = (path.absolute().parent,)

    def prepare(main: types.ModuleType) -> types.CodeType:
        main.__loader__ = SourceFileLoader("__main__", file)
        _fill(main, file=file, spec=None, package=None, cached=None)
        if failure is not None:
            raise failure
        return code

    shown = target if str(path) == target else str(path)
    return Program(name=shown, folder=str(path.resolve().parent), prepare=prepare, own=own)


def from_module(name: str) -> Program:
    """Return the program in a module or in a package's ``__main__``; raises `TargetError`."""
    folder, top = str(Path.cwd()), name.partition(".")[0]
    with _first_on_path(folder):
        if not top or importlib.util.find_spec(top) is None:
            raise TargetError(f"no module named {name!r}")
        own = (_home(top),)

    def prepare(main: types.ModuleType) -> types.CodeType:
        spec = _runnable_spec(name)
        loader: Any = spec.loader
        code = loader.get_code(spec.name)
        if code is None:
            raise TargetError(f"{name}: a module without Python code")
        main.__loader__ = loader
        _fill(main, file=spec.origin, spec=spec, package=spec.parent, cached=spec.cached)
        sys.argv[0] = spec.origin or name
        assert isinstance(code, types.CodeType)
        return code

    return Program(name="-m", folder=folder, prepare=prepare, own=own)


def _runnable_spec(name: str) -> ModuleSpec:
    """Return the spec of a module, or of a package's ``__main__``; imports the packages around it."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the package itself imports
        spec = None
    if spec is None or spec.loader is None:
        raise TargetError(f"no module named {name!r}, or it cannot be run")
    return spec if spec.submodule_search_locations is None else _runnable_spec(f"{name}.__main__")


def _home(module: str) -> Path:
    """Return the directory of a module's top-level package, or the file of a top-level module."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    if spec is None:
        return Path.cwd()
    return Path(next(iter(spec.submodule_search_locations or ()), spec.origin or "."))


def _fill(main: types.ModuleType, *, file: str | None, spec: Any, package: str | None, cached: Any) -> None:
    main.__file__, main.__spec__, main.__package__ = file, spec, package
    vars(main).update(__builtins__=builtins, __cached__=cached)
    if sys.version_info < (3, 14):
        vars(main).setdefault("__annotations__", {})


@contextmanager
def as_main(main: types.ModuleType, program: Program, argv: Sequence[str]) -> Iterator[None]:
    """Make a module the process's ``__main__``: workers, pickles and argparse look there."""
    before = sys.argv, sys.modules["__main__"]
    sys.argv, sys.modules["__main__"] = [program.name, *argv], main
    try:
        with _first_on_path(program.folder):
            yield
    finally:
        sys.argv, sys.modules["__main__"] = before


@contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    before = list(sys.path)
    if not getattr(sys.flags, "safe_path", False):  # python -P prepends nothing
        sys.path[:1] = [folder]
    try:
        yield
    finally:
        sys.path[:] = before
