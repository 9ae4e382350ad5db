"""When a program turns to evaluation: it calls ``eval`` on a module, or runs code without gradient."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.utils import _contextlib

from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.patches import HIDDEN, Patches

#: where decorated functions enter what decorates them
_DECORATORS = _contextlib.__file__


class EvaluationWatch:
    """Calls ``then`` after ``eval`` was called on a module, and before the user's code goes without gradient.

    It is given the place of that code, None for ``eval``: a ``with torch.no_grad()`` (or
    ``inference_mode``) of the user, or a function that is decorated with it.
    """

    def __init__(self, then: Callable[[Spot | None], None], code: UserCode) -> None:
        self._then, self._code = then, code
        self._patches = Patches()

    def attach(self) -> None:
        """Wrap the methods."""
        self._patches.wrap(nn.Module, "eval", self._around_eval)
        self._patches.wrap(torch.no_grad, "__enter__", self._around_enter)

    def detach(self) -> None:
        """Put them back."""
        self._patches.undo()

    def _around_eval(self, original: Any) -> Any:
        def eval(module: Any) -> Any:
            result = original(module)
            self._then(None)
            return result

        return eval

    def _around_enter(self, original: Any) -> Any:
        def enter(*args: Any, **kwargs: Any) -> Any:
            self.entered(sys._getframe(1))
            return original(*args, **kwargs)

        return enter

    def entered(self, frame: FrameType | None) -> None:
        """Take note that a frame goes without gradient; the probe wraps inference mode and calls this."""
        spot = self._place(frame)
        if spot is not None:
            self._then(spot)

    def _place(self, frame: FrameType | None) -> Spot | None:
        """Return the user's code that a frame is, or that it is about to run."""
        while frame is not None and frame.f_code.co_filename == HIDDEN:
            frame = frame.f_back
        if frame is None:
            return None
        code: CodeType | None = frame.f_code
        line = frame.f_lineno
        if frame.f_code.co_filename == _DECORATORS:
            code = getattr(frame.f_locals.get("func"), "__code__", None)
            line = code.co_firstlineno if code is not None else 0
        if code is None or not self._code.is_user(code.co_filename):
            return None
        return Spot(code.co_filename, line, code.co_name)
