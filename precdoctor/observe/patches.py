"""Functions of torch replaced for a while by wrappers that nobody notices, and put back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

#: Frames with such a file name are passed over when warnings count their stacklevel (as those of the import
#: system) and when dynamo looks for code to compile: a warning from below a wrapper still points to the
#: user's line.
HIDDEN = "<frozen importlib._bootstrap precdoctor>"


class Patches:
    """Wrapped functions, and how to put the originals back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def wrap(self, owner: Any, name: str, around: Callable[[Any], Any]) -> None:
        """Replace an attribute of a class or module by ``around(original)``, a function."""
        original = owner.__dict__[name]
        wrapper: Any = functools.wraps(original)(around(original))
        wrapper.__code__ = wrapper.__code__.replace(co_filename=HIDDEN)
        setattr(owner, name, wrapper)

        def undo() -> None:
            if owner.__dict__.get(name) is wrapper:  # else somebody patched over it; ours has to idle there
                setattr(owner, name, original)

        self._undo.append(undo)

    def undo(self) -> None:
        """Put everything back, last first."""
        while self._undo:
            self._undo.pop()()
