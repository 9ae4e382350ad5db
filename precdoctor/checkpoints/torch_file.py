"""Reads what torch.save wrote, with weights_only: a file that asks for other code is refused, not run."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from precdoctor.checkpoints.checkpoint import Checkpoint, CheckpointError, Entry
from precdoctor.checkpoints.sources import FileRange, Loaded, Strided, size_of

#: tensors whose bytes are their elements
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def read(path: Path) -> Checkpoint:
    """Return what a file holds; tensors stay in it. Raises `CheckpointError`."""
    limits: list[str] = []
    nbytes = size_of(path)
    if zipfile.is_zipfile(path):
        # on the meta device nothing is read, and each storage knows where in the file it lies
        tree = _load(path, map_location="meta")
        if not all(_known_place(tensor) for tensor in _tensors(tree)):  # torch before 2.6 or so
            tree = _load(path, map_location="cpu", mmap=True)
    else:
        limits.append(f"{path.name} is in torch's old format, which can only be loaded as a whole.")
        tree = _load(path, map_location="cpu")
    entries = _entries(path, tree, nbytes, limits)
    return Checkpoint(
        path=path, kind="torch", nbytes=nbytes, tree=entries, ordered=True, limits=tuple(limits)
    )


def _known_place(tensor: torch.Tensor) -> bool:
    plain = tensor.layout is torch.strided and not tensor.is_quantized
    return not plain or hasattr(tensor.untyped_storage(), "_checkpoint_offset")


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (dict, list, tuple)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(value)


def _load(path: Path, **how: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if how.get("mmap"):
                return torch.load(path, weights_only=True, **how)
            with path.open("rb") as file:  # by its name torch takes some files for what they are not
                return torch.load(file, weights_only=True, **how)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {refusal(str(error))}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = str(error)
        if "TorchScript" in text:
            raise CheckpointError(f"{path}: a TorchScript program; save its state_dict()") from None
        raise CheckpointError(f"{path}: damaged, or cut off: torch cannot read it") from None
    except (IndexError, AssertionError, RecursionError, UnicodeDecodeError, OverflowError, MemoryError):
        raise CheckpointError(f"{path}: damaged: torch cannot read it") from None


def refusal(text: str) -> str:
    """Return in one line why torch refused to load a pickle."""
    named = re.search(r"(?:GLOBAL |[Uu]nsupported (?:class|global)\W+(?!GLOBAL))([\w.]+)", text)
    if named:
        return (
            f"asks to run {named[1]}, which is more than tensors and plain values, and was not loaded; "
            "save a state_dict() instead"
        )
    return "damaged, or a pickle of more than tensors and plain values; it was not loaded"


def _entries(path: Path, tree: Any, size: int, limits: list[str]) -> Any:
    """Return the tree with entries in the place of tensors."""
    if isinstance(tree, torch.Tensor):
        return _entry(path, tree, size, limits)
    if isinstance(tree, dict):
        return {key: _entries(path, value, size, limits) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_entries(path, value, size, limits) for value in tree]
    return tree


def _entry(path: Path, tensor: torch.Tensor, size: int, limits: list[str]) -> Entry | None:
    tensor = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_quantized or type(tensor) not in _PLAIN:
        limits.append(f"A {tensor.layout} {type(tensor).__name__} of {path.name} was not read.")
        return None
    shape, dtype = tuple(tensor.shape), tensor.dtype
    storage = tensor.untyped_storage()
    if tensor.device.type != "meta":
        key = (path, storage.data_ptr(), tensor.storage_offset(), shape, tensor.stride())
        return Entry(dtype=dtype, shape=shape, source=Loaded(lambda: tensor), storage=key)
    start = getattr(storage, "_checkpoint_offset", None)  # set by torch.load
    assert start is not None
    if start + storage.nbytes() > size:
        raise CheckpointError(f"{path}: cut off inside its tensors")
    whole = FileRange(path, start, storage.nbytes())
    first = int(tensor.storage_offset())
    key = (path, start, first, shape, tensor.stride())
    if tensor.is_contiguous():
        part = FileRange(path, start + first * dtype.itemsize, tensor.numel() * dtype.itemsize)
        return Entry(dtype=dtype, shape=shape, source=part, storage=key)
    strided = Strided(whole, dtype, shape, tensor.stride(), first)
    return Entry(dtype=dtype, shape=shape, source=strided, storage=key)
