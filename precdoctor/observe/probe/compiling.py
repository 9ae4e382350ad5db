"""When torch.compile turns code into a graph: not when it is called, as many libraries do on import."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from precdoctor.observe.patches import Patches


class CompileWatch:
    """Calls ``then`` as often as a compilation begins; in the middle of it, where little can be done."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._patches = Patches()

    def attach(self) -> None:
        """Begin to listen."""
        self._patches.wrap(torch, "compile", self._around_compile)
        self._listen()

    def detach(self) -> None:
        """Listen no more."""
        self._patches.undo()
        callbacks = getattr(_handler(), "start_callbacks", [])
        while self._begins in callbacks:
            callbacks.remove(self._begins)

    def _around_compile(self, original: Any) -> Any:
        def compile(*args: Any, **kwargs: Any) -> Any:
            if not hasattr(TorchDispatchMode, "ignore_compile_internals"):
                self._then()  # older versions compile nothing while a mode is active
            result = original(*args, **kwargs)
            self._listen()
            return result

        return compile

    def _listen(self) -> None:
        """Ask dynamo to be told, once it is there; a reset of it forgets that."""
        handler = _handler()
        if handler is not None and self._begins not in handler.start_callbacks:
            handler.register_start_callback(self._begins)

    def _begins(self, *_: Any) -> None:
        self._then()


def _handler() -> Any:
    return getattr(sys.modules.get("torch._dynamo"), "callback_handler", None)
