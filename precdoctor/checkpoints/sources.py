"""Where the bytes of tensors come from: a stretch of a file, or memory.

Files are read into one buffer and not mapped: mapped pages count as memory of the process, a buffer that
is used again does not grow with the file.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from precdoctor.checkpoints.checkpoint import CheckpointError


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes that lie in a file one after the other."""

    path: Path
    #: position of the first byte in the file
    offset: int
    nbytes: int

    def open(self) -> OpenedFile:
        """Open the file."""
        try:
            return OpenedFile(io.FileIO(self.path), self)
        except OSError as error:
            raise CheckpointError(f"{self.path}: {error.strerror}") from None


class OpenedFile:
    """A file that is being read into one buffer."""

    def __init__(self, file: io.FileIO, of: FileRange) -> None:
        self._file, self._of = file, of
        self._buffer = np.empty(0, np.uint8)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes from start to stop; raises `CheckpointError` where the file ends before."""
        if len(self._buffer) < stop - start:
            self._buffer = np.empty(stop - start, np.uint8)
        view = memoryview(self._buffer.data)[: stop - start]
        self._file.seek(self._of.offset + start)
        done = 0
        while done < len(view):
            try:
                got = self._file.readinto(view[done:])
            except OSError as error:
                raise CheckpointError(f"{self._of.path}: {error.strerror}") from None
            if not got:
                raise CheckpointError(f"{self._of.path}: the file ends in the middle of a tensor")
            done += got
        return self._buffer[: stop - start]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A tensor that is loaded when it is read, as a whole."""

    load: Callable[[], torch.Tensor]

    def open(self) -> OpenedTensor:
        """Load the tensor."""
        return OpenedTensor(self.load())


class OpenedTensor:
    """A tensor in memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._bytes: NDArray[np.uint8] = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()

    def close(self) -> None:
        """Let go of the tensor."""
        self._bytes = np.empty(0, np.uint8)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes from start to stop."""
        return self._bytes[start:stop]


@dataclass(frozen=True, slots=True)
class Strided:
    """A tensor whose elements do not lie one after the other in its storage."""

    storage: FileRange
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    #: position of the first element in the storage, in elements
    first: int

    def open(self) -> OpenedTensor:
        """Read the storage and put the elements in order."""
        with contextlib.closing(self.storage.open()) as opened:
            raw = opened.read(0, self.storage.nbytes)
        flat = torch.from_numpy(raw).view(self.dtype)
        return OpenedTensor(flat.as_strided(self.shape, self.stride, self.first))


def size_of(path: Path) -> int:
    """Return the size of a file in bytes."""
    return path.stat().st_size
