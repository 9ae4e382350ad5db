"""Reads safetensors: the header is JSON with an offset for each tensor, the rest is their bytes.

The format is read here and not by its library so that a tensor can be read in parts, whatever its shape;
what the header claims is checked against the size of the file before anything is read.
Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch

from precdoctor.checkpoints.checkpoint import Checkpoint, CheckpointError, Entry
from precdoctor.checkpoints.sources import FileRange, size_of

#: largest header that the format's own library accepts, in bytes
MAX_HEADER = 100_000_000
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip


def read(path: Path) -> Checkpoint:
    """Return what one file holds. Raises `CheckpointError`."""
    tree, limits = tensors(path)
    return Checkpoint(
        path=path, kind="safetensors", nbytes=size_of(path), tree=tree, ordered=False, limits=limits
    )


def read_shards(path: Path, files: Iterable[Path], weight_map: dict[str, str] | None = None) -> Checkpoint:
    """Return what several files hold together; ``weight_map`` says which tensor must be where."""
    tree: dict[str, Entry] = {}
    limits: tuple[str, ...] = ()
    nbytes = 0
    for file in files:
        part, more = tensors(file)
        if weight_map is not None:
            missing = [n for n, where in weight_map.items() if where == file.name and n not in part]
            if missing:
                raise CheckpointError(f"{file}: the index says that {missing[0]!r} is here, and it is not")
            part = {name: entry for name, entry in part.items() if weight_map.get(name) == file.name}
        tree.update(part)
        limits += more
        nbytes += size_of(file)
    return Checkpoint(path=path, kind="safetensors", nbytes=nbytes, tree=tree, ordered=False, limits=limits)


def tensors(path: Path) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """Return the tensors of a file by name, and which of them can't be looked at."""
    size = size_of(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise CheckpointError(f"{path}: not safetensors, or cut off inside its header")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: its safetensors header is damaged") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its safetensors header is damaged")
    found: dict[str, Entry] = {}
    skipped: dict[str, int] = {}
    for name, told in header.items():
        if name == "__metadata__":
            continue
        start, stop, shape, kind = _checked(path, name, told)
        if 8 + length + stop > size:
            missing = 8 + length + max(_stop(each) for each in header.values()) - size
            raise CheckpointError(f"{path}: cut off, {missing:,} of its bytes are missing")
        dtype = _DTYPES.get(kind)
        if dtype is None:
            skipped[kind] = skipped.get(kind, 0) + 1
            continue
        if prod(shape) * dtype.itemsize != stop - start:
            raise CheckpointError(f"{path}: {name!r} has another size than its shape says")
        where = FileRange(path, 8 + length + start, stop - start)
        found[name] = Entry(dtype=dtype, shape=shape, source=where)
    limits = tuple(f"{n} tensors of {path.name} are {kind} and were not read." for kind, n in skipped.items())
    return found, limits


def _checked(path: Path, name: str, told: Any) -> tuple[int, int, tuple[int, ...], str]:
    try:
        (start, stop), shape, kind = told["data_offsets"], told["shape"], told["dtype"]
        numbers = (start, stop, *shape)
    except (TypeError, ValueError, KeyError):
        raise CheckpointError(f"{path}: its safetensors header is damaged at {name!r}") from None
    if not all(type(n) is int and n >= 0 for n in numbers) or stop < start or not isinstance(kind, str):
        raise CheckpointError(f"{path}: its safetensors header is damaged at {name!r}")
    return start, stop, tuple(shape), kind


def _stop(told: Any) -> int:
    try:
        return int(told["data_offsets"][1])
    except (TypeError, ValueError, KeyError, IndexError):
        return 0
