"""A checkpoint as a tree of plain values and entries: tensors that stay in their file until they are read."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class CheckpointError(Exception):
    """A file that can't be read; the text says why in one line."""


class Opened(Protocol):
    """The bytes of one tensor, in the order of its elements."""

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes from start to stop; they are valid until the next call."""
        ...

    def close(self) -> None:
        """Let go of the file, or of the memory."""
        ...


class Source(Protocol):
    """Where the bytes of a tensor are."""

    def open(self) -> Opened:
        """Prepare to read; `contextlib.closing` ends it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of a checkpoint, not read yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    source: Source
    #: equal for tensors that share the same memory of the same file; None where a file does not tell
    storage: Hashable = None

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What one file or directory holds."""

    path: Path
    #: "safetensors", "torch" or "torch distributed"
    kind: str
    #: size of the files, in bytes
    nbytes: int
    #: dicts and lists as they were saved; tensors are entries
    tree: Any
    #: weights stand in the order in which the model has them
    ordered: bool
    #: what could not be looked at and why, in sentences
    limits: tuple[str, ...] = ()

    def entries(self) -> dict[tuple[str, ...], Entry]:
        """Return all tensors by their path in the tree."""
        return dict(_walk(self.tree, ()))


def _walk(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Entry]]:
    if isinstance(tree, Entry):
        yield path or ("tensor",), tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _walk(value, (*path, str(key)))
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _walk(value, (*path, str(index)))
