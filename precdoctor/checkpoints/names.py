"""Which tensor of one file is which of the other: names without what wrappers and containers add to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

_Value = TypeVar("_Value")
Path = tuple[str, ...]
#: what wrappers of models put into names (DDP, torch.compile, FSDP, activation checkpointing)
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def plain(path: Path) -> str:
    """Return the name of a tensor without the names of wrappers: "model.layers.0.weight"."""
    parts = ".".join(path).split(".")
    kept = [part for part in parts[:-1] if part not in _WRAPPERS]
    return ".".join([*kept, parts[-1]])


def matched(
    first: Mapping[str, _Value], second: Mapping[str, _Value]
) -> tuple[dict[str, _Value], dict[str, _Value]]:
    """Return both by names that mean the same tensors.

    Where hardly a name is in both, what all names of a container begin with is left out: "model." of a
    checkpoint that also holds an optimizer, compared with weights alone.
    """
    if not first or not second or _common(first, second) * 2 >= min(len(first), len(second)):
        return dict(first), dict(second)
    best, found = _common(first, second), (dict(first), dict(second))
    for strip_first in _prefixes(first):
        for strip_second in _prefixes(second):
            one, other = _without(first, strip_first), _without(second, strip_second)
            if _common(one, other) > best:
                best, found = _common(one, other), (one, other)
    return found


def _common(first: Collection[str], second: Collection[str]) -> int:
    return len(set(first) & set(second))


def _prefixes(names: Collection[str]) -> list[str]:
    """Return the beginnings, up to two parts long, that many names share."""
    counts: dict[str, int] = {"": 0}
    for name in names:
        parts = name.split(".")
        for length in (1, 2):
            if len(parts) > length:
                beginning = ".".join(parts[:length]) + "."
                counts[beginning] = counts.get(beginning, 0) + 1
    most = sorted(counts, key=lambda each: (each != "", -counts[each]))
    return most[:6]


def _without(names: Mapping[str, _Value], prefix: str) -> dict[str, _Value]:
    if not prefix:
        return dict(names)
    cut = {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}
    return cut | {n: value for n, value in names.items() if not n.startswith(prefix) and n not in cut}
