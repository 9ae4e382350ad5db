"""Scopes that put the dispatch state of their thread back when they end: inference mode, autograd's engine.

A dispatch mode that is entered or left inside of one is half undone at its end, and every later operation
of the thread would fail.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from precdoctor.observe.patches import Patches


class _Depth(threading.local):
    def __init__(self) -> None:
        self.value = 0


class Scopes:
    """Knows whether a thread is inside such a scope; calls ``on_end`` when the outermost one has ended.

    ``on_begin`` is called before inference mode begins, with the frame that enters it; ``on_backward``
    after a backward pass that is inside no other, with its arguments and what it returned.
    """

    def __init__(
        self,
        on_end: Callable[[], None],
        on_begin: Callable[[FrameType], None] = lambda _: None,
        on_backward: Callable[[tuple[Any, ...], Any], None] = lambda *_: None,
    ) -> None:
        self._on_end, self._on_begin, self._on_backward = on_end, on_begin, on_backward
        self._depth = _Depth()
        self._patches = Patches()

    @property
    def inside(self) -> bool:
        """Tell whether this thread is inside a scope: one that began while attached, or a backward pass."""
        return self._depth.value > 0 or torch._C._current_graph_task_id() != -1

    def attach(self) -> None:
        """Begin to take note of scopes."""
        self._patches.wrap(torch.inference_mode, "__enter__", self._around_enter)
        self._patches.wrap(torch.inference_mode, "__exit__", self._around_exit)
        self._patches.wrap(torch.autograd, "_engine_run_backward", self._around_engine)

    def detach(self) -> None:
        """Take no more note."""
        self._patches.undo()

    def _around_enter(self, original: Any) -> Any:
        def enter(*args: Any, **kwargs: Any) -> Any:
            self._on_begin(sys._getframe(1))
            result = original(*args, **kwargs)
            self._depth.value += 1
            return result

        return enter

    def _around_exit(self, original: Any) -> Any:
        def leave(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                self._ended()

        return leave

    def _around_engine(self, original: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            outermost = not self.inside
            self._depth.value += 1
            try:
                result = original(*args, **kwargs)
            finally:
                self._ended()
            if outermost:
                self._on_backward(args, result)
            return result

        return run

    def _ended(self) -> None:
        self._depth.value = max(self._depth.value - 1, 0)  # one that began before us ends as well
        if not self._depth.value:
            self._on_end()
