"""When a program turns to evaluation: the call of ``eval`` on a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from precdoctor.observe.patches import Patches


class EvaluationWatch:
    """Calls ``then`` whenever ``eval`` was called on a module."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._patches = Patches()

    def attach(self) -> None:
        """Wrap the method."""
        self._patches.wrap(nn.Module, "eval", self._around_eval)

    def detach(self) -> None:
        """Put it back."""
        self._patches.undo()

    def _around_eval(self, original: Any) -> Any:
        def eval(module: Any) -> Any:
            result = original(module)
            self._then()
            return result

        return eval
