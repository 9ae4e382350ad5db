"""Which lines of the user's code call a model: the calls of modules that run inside no other module."""

from __future__ import annotations

import ast
import itertools
import linecache
from types import CodeType, FrameType
from typing import NamedTuple

import torch
from torch import nn

from precdoctor.evidence import Forward
from precdoctor.observe.frames import UserCode
from precdoctor.observe.provenance.source import Source

#: the code that runs a module's hooks and its forward
CALL = nn.Module._call_impl.__code__


class _Call(NamedTuple):
    device: str
    autocast: str


class Forwards:
    """Takes note of the lines, at the cost of a look at a few frames for each call of a module."""

    def __init__(self) -> None:
        self._code = UserCode()
        self._seen: dict[tuple[CodeType, int, int], _Call] = {}

    def note(self, module: nn.Module, frame: FrameType | None) -> None:
        """Note who called a module, from a frame inside that call."""
        while frame is not None and frame.f_code.co_filename == CALL.co_filename:
            frame = frame.f_back
        if frame is None:
            return
        key = frame.f_code, frame.f_lasti, frame.f_lineno
        if key in self._seen or not self._code.is_user(frame.f_code.co_filename):
            return
        outer = frame.f_back
        while outer is not None:
            if outer.f_code is CALL:
                return
            outer = outer.f_back
        parameter = next((p for m in module.modules() for p in m._parameters.values() if p is not None), None)
        if parameter is not None:  # a loss without parameters is no model
            device = parameter.device.type
            active = torch.is_autocast_enabled(device)
            format = str(torch.get_autocast_dtype(device)).removeprefix("torch.") if active else ""
            self._seen[key] = _Call(device, format)

    def found(self, source: Source) -> tuple[Forward, ...]:
        """Return what was noted, each line once."""
        forwards = dict[Forward, None]()
        for (code, instruction, line), call in self._seen.items():
            function = "" if code.co_name == "<module>" else code.co_name
            place = source.place(code.co_filename, line, function)
            forwards[
                Forward(
                    place=place,
                    expression=_called(code, instruction),
                    device=call.device,
                    autocast=call.autocast,
                )
            ] = None
        return tuple(forwards)


def innermost_module(frame: FrameType | None) -> nn.Module | None:
    """Return the innermost module whose forward is running, from a frame outwards."""
    while frame is not None:
        if frame.f_code is CALL:
            found = frame.f_locals["self"]
            return found if isinstance(found, nn.Module) else None
        frame = frame.f_back
    return None


def outside_of_modules(frame: FrameType | None) -> FrameType | None:
    """Return the frame that called the outermost module whose forward is running, or is about to."""
    found = frame
    while frame is not None:
        if frame.f_code is CALL:
            found = frame.f_back
        frame = frame.f_back
    return found


def _called(code: CodeType, instruction: int) -> str:
    """Return the source of what an instruction calls, such as "self.model"; nothing before Python 3.11."""
    if not hasattr(code, "co_positions"):
        return ""
    line, end, start, stop = next(
        itertools.islice(code.co_positions(), instruction // 2, None), (None, None, None, None)
    )
    if line is None or end is None or start is None or stop is None:
        return ""
    lines = [text.encode() for text in linecache.getlines(code.co_filename)[line - 1 : end]]
    if not lines:
        return ""
    lines[-1] = lines[-1][:stop]
    lines[0] = lines[0][start:]
    try:
        call = ast.parse(b"".join(lines).strip(), mode="eval").body
    except SyntaxError:
        return ""
    return ast.unparse(call.func) if isinstance(call, ast.Call) else ""
