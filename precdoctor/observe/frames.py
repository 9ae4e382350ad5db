"""Whose code a frame is: finds the user's line among the frames of libraries."""

from __future__ import annotations

import functools
import os
import site
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch

_PACKAGE = Path(__file__).absolute().parents[1]
_TORCH = Path(torch.__file__).absolute().parent
#: outside this file's frames lie those of our own command, never the user's
_RUNNER = str(_PACKAGE / "script.py")
#: functions that every call of torch goes through while they are in force: no line of theirs is meant
INTERCEPTS = ("__torch_dispatch__", "__torch_function__")
#: frames that are never the fallback: of no file, of torch and of precdoctor
_NEVER = ("<", f"{_TORCH}{os.sep}", f"{_PACKAGE}{os.sep}")


class Spot(NamedTuple):
    """What a frame tells at no cost; the source is read only when a place is asked for."""

    file: str
    line: int
    function: str


class UserCode:
    """Tells the user's files from those of Python, of installed packages and of precdoctor.

    ``own`` are directories that count as the user's wherever they lie: the package that is run when
    the target itself is an installed one.
    """

    def __init__(self, own: Iterable[Path] = ()) -> None:
        self._own = tuple(path.absolute() for path in own)
        self._libraries = tuple(sorted({_PACKAGE, _TORCH, *_library_folders()}))
        self._known: dict[str, bool] = {}

    def is_user(self, file: str) -> bool:
        """Tell whether the file is the user's code."""
        known = self._known.get(file)
        if known is None:
            known = self._known[file] = self._judge(file)
        return known

    def innermost(self, frame: FrameType | None) -> tuple[Spot | None, list[str]]:
        """Return the user's innermost line, from ``frame`` outwards, and the functions passed on the way.

        Where no frame is the user's, it is the outermost one outside torch.
        """
        passed: list[str] = []
        fallback: FrameType | None = None
        while frame is not None:
            code = frame.f_code
            file = code.co_filename
            if self.is_user(file) and code.co_name not in INTERCEPTS:
                return _spot(frame), passed
            if file == _RUNNER:
                break
            passed.append(code.co_name)
            if not file.startswith(_NEVER):
                fallback = frame
            frame = frame.f_back
        return (None if fallback is None else _spot(fallback)), passed

    def _judge(self, file: str) -> bool:
        if file.startswith("<"):
            return False
        path = Path(file).absolute()
        if any(path.is_relative_to(folder) for folder in self._own):
            return True
        if "site-packages" in path.parts or "dist-packages" in path.parts:
            return False
        return not any(path.is_relative_to(folder) for folder in self._libraries)


def _spot(frame: FrameType) -> Spot:
    name = frame.f_code.co_name
    return Spot(_absolute(frame.f_code.co_filename), frame.f_lineno, "" if name == "<module>" else name)


@functools.cache
def _absolute(file: str) -> str:
    return str(Path(file).absolute())


def _library_folders() -> list[Path]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = [Path(path).absolute() for path in [*paths, *site.getsitepackages()]]
    return [*folders, *(folder.resolve() for folder in folders), Path(os.__file__).parent]
