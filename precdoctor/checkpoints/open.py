"""Finds out what a path holds, by its content and not by its name, and opens it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from precdoctor.checkpoints import distributed, safetensors, torch_file
from precdoctor.checkpoints.checkpoint import Checkpoint, CheckpointError

READABLE = "safetensors, torch.save, or a directory of shards or of a torch distributed checkpoint"
#: file names under which trainers keep the optimizer's state beside the weights
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin")
#: how other files begin
_BEGINNINGS = {
    b"GGUF": "a GGUF file",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a numpy array",
    b"\x1f\x8b": "a gzip file: unpack it first",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: run git lfs pull",
}


def open_checkpoint(path: Path) -> Checkpoint:
    """Return what a file or directory holds; raises `CheckpointError` with one line that says what to do."""
    try:
        if path.is_dir():
            return _directory(path)
        if path.name.endswith(".index.json"):
            return _indexed(path)
        if path.name == distributed.INDEX:
            return distributed.read(path.parent)
        return _file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None


def _file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        begin = file.read(32)
    if not begin:
        raise CheckpointError(f"{path}: empty")
    for start, what in _BEGINNINGS.items():
        if begin.startswith(start):
            raise CheckpointError(f"{path}: {what}; precdoctor reads {READABLE}")
    # a zip, a pickle from protocol 2 on, or a tar with pickles: all of them torch's
    if begin.startswith((b"PK", b"\x80")) or _is_tar(path):
        return torch_file.read(path)
    if begin[8:9] == b"{" or path.suffix == ".safetensors":
        return safetensors.read(path)
    if begin[:1] == b"{" and path.suffix == ".json":
        return _indexed(path)
    raise CheckpointError(f"{path}: no checkpoint; precdoctor reads {READABLE}")


def _is_tar(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(257)
        return file.read(5) == b"ustar"


def _directory(path: Path) -> Checkpoint:
    if (path / distributed.INDEX).is_file():
        return distributed.read(path)
    indices = sorted(path.glob("*.index.json"))
    weights = sorted(path.glob("*.safetensors"))
    if indices:
        found = _indexed(next((i for i in indices if ".safetensors." in i.name), indices[0]))
    elif weights:
        found = safetensors.read_shards(path, weights)
    else:
        files = [p for pattern in ("*.bin", "*.pt", "*.pth") for p in sorted(path.glob(pattern))]
        files = [p for p in files if p.name not in _OPTIMIZERS and _holds_tensors(p)]
        if not files:
            raise CheckpointError(f"{path}: no checkpoint in this directory; precdoctor reads {READABLE}")
        if len(files) > 1:
            raise CheckpointError(f"{path}: {len(files)} torch files here; name the one to read")
        found = torch_file.read(files[0])
    return _with_optimizer(path, found)


def _holds_tensors(path: Path) -> bool:
    # what Hugging Face trainers keep beside the weights
    return path.name not in ("scheduler.pt", "scaler.pt", "training_args.bin", "rng_state.pth")


def _with_optimizer(path: Path, found: Checkpoint) -> Checkpoint:
    """Add the optimizer's state that a trainer keeps in a file of its own."""
    for name in _OPTIMIZERS:
        if (path / name).is_file():
            state = torch_file.read(path / name)
            return Checkpoint(
                path=path,
                kind=found.kind,
                nbytes=found.nbytes + state.nbytes,
                tree={"model": found.tree, "optimizer": state.tree},
                ordered=found.ordered,
                limits=found.limits + state.limits,
            )
    return Checkpoint(
        path=path,
        kind=found.kind,
        nbytes=found.nbytes,
        tree=found.tree,
        ordered=found.ordered,
        limits=found.limits,
    )


def _indexed(path: Path) -> Checkpoint:
    """Return the shards that an index lists."""
    try:
        index: Any = json.loads(path.read_bytes())
        weight_map = index["weight_map"]
        names = list(dict.fromkeys(weight_map.values()))
        assert all(isinstance(name, str) and Path(name).name == name for name in names)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: not the index of a sharded checkpoint: no weight_map in it") from None
    except AssertionError:
        raise CheckpointError(f"{path}: names a shard outside its directory") from None
    files = [path.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{path}: its shard {missing[0]} is missing")
    if not files:
        raise CheckpointError(f"{path}: the index lists no tensors")
    if all(name.endswith(".safetensors") for name in names):
        return safetensors.read_shards(path, files, weight_map)
    parts = [torch_file.read(file) for file in files]
    tree = {key: value for part in parts if isinstance(part.tree, dict) for key, value in part.tree.items()}
    return Checkpoint(
        path=path,
        kind="torch",
        nbytes=sum(part.nbytes for part in parts),
        tree=tree,
        ordered=True,
        limits=tuple(limit for part in parts for limit in part.limits),
    )
