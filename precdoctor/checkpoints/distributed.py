"""Reads torch distributed checkpoints: a directory of shards, with a pickled index beside them.

The index is unpickled by a reader that knows the classes such an index is made of and refuses everything
else; each shard is a torch file of its own, loaded with weights_only.
"""

from __future__ import annotations

import enum
import functools
import io
import pickle
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import torch

from precdoctor.checkpoints.checkpoint import Checkpoint, CheckpointError, Entry
from precdoctor.checkpoints.sources import Loaded, size_of
from precdoctor.checkpoints.torch_file import refusal

INDEX = ".metadata"
#: what an index may be made of, by module
_KNOWN = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed._shard.sharded_tensor.metadata": ("TensorProperties", "MEM_FORMAT_ENCODING"),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "device"),
    "collections": ("OrderedDict",),
}  # fmt: skip


class _IndexReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.partition(".")[0] == "pathlib" and name.endswith("Path"):
            return PurePath  # where it was written; a path of another system could not be made here
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name not in _KNOWN.get(module, ()):
            raise _refused(f"{module}.{name}")
        return super().find_class(module, name)


def _member(owner: Any, name: Any) -> Any:
    """Return a member of an enumeration, which Python 3.11.0 to 3.11.3 pickle as getattr(owner, name)."""
    if not isinstance(owner, type) or not issubclass(owner, enum.Enum) or name not in owner.__members__:
        raise _refused("builtins.getattr")
    return owner[name]


def _refused(what: str) -> CheckpointError:
    return CheckpointError(f"its index asks to run {what}, which no such index needs, and was not loaded")


def read(path: Path) -> Checkpoint:
    """Return what a directory holds. Raises `CheckpointError`."""
    index = _index(path)
    paths = getattr(index, "planner_data", None) or {}
    where: dict[tuple[str, Any], Any] = {}
    for key, info in (getattr(index, "storage_data", None) or {}).items():
        where[key.fqn, None if key.offset is None else tuple(key.offset)] = info
    files = {info.relative_path for info in where.values()}
    nbytes = sum(_size(path, name) for name in files)
    # what several ranks have is written by any of them, and so the order is lost
    ranks = {name.split("_")[2] for name in files if name.count("_") > 2}
    flat: dict[tuple[Any, ...], Any] = {}
    limits: list[str] = []
    for name, told in index.state_dict_metadata.items():
        keys = tuple(paths.get(name, (name,)))
        if hasattr(told, "chunks"):
            flat[keys] = _tensor(path, name, told, where)
        else:
            try:
                flat[keys] = _object(path, where[name, None])
            except (CheckpointError, KeyError):
                limits.append(f"{name} of {path.name} is no tensor and was not read.")
    return Checkpoint(
        path=path,
        kind="torch distributed",
        nbytes=nbytes,
        tree=_nested(flat),
        ordered=len(ranks) == 1,
        limits=tuple(limits),
    )


def _index(path: Path) -> Any:
    import torch.distributed.checkpoint.metadata  # the classes of the index

    file = path / INDEX
    try:
        with file.open("rb") as stream:
            index = _IndexReader(stream).load()
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    except Exception:  # a damaged pickle fails in any way
        raise CheckpointError(f"{file}: damaged, or written by another version of torch") from None
    if not isinstance(index, torch.distributed.checkpoint.metadata.Metadata):
        raise CheckpointError(f"{file}: not the index of a torch distributed checkpoint")
    return index


def _size(path: Path, name: Any) -> int:
    if not isinstance(name, str) or Path(name).name != name:
        raise CheckpointError(f"{path / INDEX}: names a shard outside its directory")
    try:
        return size_of(path / name)
    except OSError:
        raise CheckpointError(f"{path}: its shard {name} is missing") from None


def _tensor(path: Path, name: str, told: Any, where: dict[tuple[str, Any], Any]) -> Entry:
    dtype, shape = told.properties.dtype, tuple(told.size)
    pieces = []
    for chunk in told.chunks:
        offsets = tuple(chunk.offsets)
        # a tensor of one piece may be indexed without its offset
        info = where.get((name, offsets)) or where.get((name, None))
        if info is None:
            raise CheckpointError(f"{path}: the index does not say where {name!r} is")
        if info.offset + info.length > _size(path, info.relative_path):
            raise CheckpointError(f"{path / info.relative_path}: cut off")
        pieces.append((offsets, tuple(chunk.sizes), info))
    load = functools.partial(_assembled, path, name, dtype, shape, pieces)
    return Entry(dtype=dtype, shape=shape, source=Loaded(load))


def _assembled(
    path: Path, name: str, dtype: torch.dtype, shape: tuple[int, ...], pieces: Iterable[tuple[Any, Any, Any]]
) -> torch.Tensor:
    """Return the whole tensor, put together from its shards."""
    whole: torch.Tensor | None = None
    for offsets, sizes, info in pieces:
        part = _load(path, info)
        if not isinstance(part, torch.Tensor) or tuple(part.shape) != sizes or part.dtype != dtype:
            raise CheckpointError(f"{path}: {name!r} is not what the index says")
        if sizes == shape:
            return part
        whole = torch.empty(shape, dtype=dtype) if whole is None else whole
        whole[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))] = part
    return torch.empty(shape, dtype=dtype) if whole is None else whole


def _object(path: Path, info: Any) -> Any:
    return _load(path, info)


def _load(path: Path, info: Any) -> Any:
    file = path / info.relative_path
    _size(path, info.relative_path)
    if getattr(info, "transform_descriptors", None):
        raise CheckpointError(f"{file}: compressed or encrypted, which is not read here")
    with file.open("rb") as stream:
        stream.seek(info.offset)
        raw = io.BytesIO(stream.read(info.length))
    try:
        return torch.load(raw, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file}: {refusal(str(error))}") from None
    except Exception:  # a damaged file fails in any way
        raise CheckpointError(f"{file}: damaged, or cut off: torch cannot read it") from None


def _nested(flat: dict[tuple[Any, ...], Any]) -> Any:
    """Return the tree that was flattened to paths; what were lists becomes dicts with numbers as keys."""
    tree: dict[Any, Any] = {}
    for keys, value in flat.items():
        at = tree
        for key in keys[:-1]:
            at = at.setdefault(key, {})
            if not isinstance(at, dict):
                raise CheckpointError(f"the index names {'.'.join(map(str, keys))!r} twice")
        at[keys[-1]] = value
    return tree
