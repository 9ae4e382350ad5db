"""Which names of a file stand for the same data, and whether they still do in the other file."""

from __future__ import annotations

from collections.abc import Mapping

from precdoctor.checkpoints.checkpoint import Entry
from precdoctor.checkpoints.look import same_bytes
from precdoctor.evidence import SharedData, Tensor

#: elements from which equal data is no chance
_LEAST = 64


def shared_data(
    first: Mapping[str, Entry], second: Mapping[str, Entry] | None, tensors: Mapping[str, Tensor]
) -> tuple[SharedData, ...]:
    """Return what is shared by storage, or equal to the last bit, among tensors of one shape and format."""
    sorts: dict[object, list[str]] = {}
    for name, entry in first.items():
        seen = tensors[name].first
        if (
            entry.numel < _LEAST
            or seen is None
            or seen.constant is not None
            or tensors[name].kind != "parameter"
        ):
            continue
        sorts.setdefault((entry.dtype, entry.shape, seen.largest), []).append(name)
    found = []
    for names in sorts.values():
        while len(names) > 1:
            one, rest = names[0], names[1:]
            equal = [name for name in rest if _same(first[one], first[name])]
            if equal:
                by_storage = all(_is_storage(first[one], first[name]) for name in equal)
                found.append(
                    SharedData(
                        names=(one, *equal),
                        by="storage" if by_storage else "data",
                        broken=_broken((one, *equal), second),
                    )
                )
            names = [name for name in rest if name not in equal]
    return tuple(found)


def _is_storage(one: Entry, other: Entry) -> bool:
    return one.storage is not None and one.storage == other.storage


def _same(one: Entry, other: Entry) -> bool:
    return _is_storage(one, other) or same_bytes(one, other)


def _broken(names: tuple[str, ...], second: Mapping[str, Entry] | None) -> bool | None:
    """Tell whether two names that are both in the second file have different data there."""
    there = [second[name] for name in names if name in second] if second is not None else []
    if len(there) < 2:
        return None
    return any(
        e.shape != there[0].shape or e.dtype != there[0].dtype or not _same(there[0], e) for e in there
    )
