"""Finds the states of optimizers in a checkpoint, and which weight each belongs to.

Optimizers number their parameters in the order in which they got them. Where the state does not name
them, numbers and weights are matched by order and shape, and left alone where that can be done in two ways.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from precdoctor.checkpoints.checkpoint import Entry

Path = tuple[str, ...]
#: names that buffers have by custom; only used where a file does not tell what is trained
_BUFFERS = re.compile(
    r"(^|[._])(running_(mean|var)|num_batches_tracked|inv_freq|freqs?(_cis)?|position_ids?|token_type_ids|"
    r"(attn_|attention_|causal_|padding_)?mask|masked_bias|alibi|(cos|sin)(_cached)?|relative_position_index|"
    r"relative_coords_table|rotary\w*\.\w+|\w*_(zp|zero_point))$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """What an optimizer keeps for one parameter."""

    #: tensors by their key, such as "exp_avg"
    tensors: dict[str, Entry]
    #: numbers by their key, such as "step"
    numbers: dict[str, Any] = field(default_factory=dict)
    #: hyper-parameters of the group
    group: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerState:
    """The state of one optimizer, by weight where that is known."""

    #: where it is in the tree
    path: Path
    owned: dict[Path, Owned]
    #: parameters with state whose weight is not known
    unknown: int
    #: all its parameters with state, matched or not
    all: tuple[Owned, ...]


def looks_like_buffer(name: str) -> bool:
    """Tell whether a tensor has a name that buffers have."""
    return _BUFFERS.search(name) is not None


def optimizers(tree: Any, ordered: bool) -> list[OptimizerState]:
    """Return the optimizers in a checkpoint; ``ordered`` tells whether weights stand in the model's order."""
    found = list(_states(tree, ()))
    weights: dict[Path, Entry] = {}
    for path, entry in _weights(tree, (), {where for where, _ in found}):
        weights[path] = entry
    return [_matched(path, state, weights, ordered) for path, state in found]


def _states(tree: Any, path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    if not isinstance(tree, dict):
        if isinstance(tree, (list, tuple)):
            for index, value in enumerate(tree):
                yield from _states(value, (*path, str(index)))
        return
    if isinstance(tree.get("state"), dict) and "param_groups" in tree:
        yield path, tree
        return
    flat = _unflattened(tree)
    if flat is not None:
        yield path, flat
        return
    for key, value in tree.items():
        yield from _states(value, (*path, str(key)))


def _unflattened(tree: dict[Any, Any]) -> dict[str, Any] | None:
    """Return a state that torch distributed flattened: "state.<name>.exp_avg", "param_groups.<name>.lr"."""
    keys = [key for key in tree if isinstance(key, str)]
    if not any(k.startswith("state.") for k in keys) or not any(k.startswith("param_groups.") for k in keys):
        return None
    state: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key in keys:
        which, _, rest = key.partition(".")
        name, _, entry = rest.rpartition(".")
        if name and which in ("state", "param_groups"):
            (state if which == "state" else groups).setdefault(name, {})[entry] = tree[key]
    return {"state": state, "param_groups": [{**group, "params": [name]} for name, group in groups.items()]}


def _weights(tree: Any, path: Path, states: set[Path]) -> Iterator[tuple[Path, Entry]]:
    if path in states:
        return
    if isinstance(tree, Entry):
        yield path or ("tensor",), tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _weights(value, (*path, str(key)), states)
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _weights(value, (*path, str(index)), states)


def _matched(path: Path, tree: dict[str, Any], weights: dict[Path, Entry], ordered: bool) -> OptimizerState:
    groups = _groups(tree["param_groups"])
    state = {str(key): value for key, value in tree["state"].items() if isinstance(value, dict)}
    everything: list[Owned] = []
    named: dict[Path, Owned] = {}
    nameless: list[list[Owned]] = []
    for group, keys, names in groups:
        row: list[Owned] = []
        for index, key in enumerate(keys):
            if key not in state:
                continue
            owned = _owned(state[key], group)
            everything.append(owned)
            name = names[index] if index < len(names) else key
            where = _named(name, weights) if not name.isdecimal() else None
            if where is not None:
                named[where] = owned
            else:
                row.append(owned)
        nameless.append(row)
    for weights_of in _containers(weights) if any(nameless) else ():
        found = _aligned(nameless, weights_of) if ordered else _alone(nameless, weights_of)
        if found:
            named |= found
            break
    return OptimizerState(path=path, owned=named, unknown=len(everything) - len(named), all=tuple(everything))


def _groups(told: Any) -> list[tuple[dict[str, Any], list[str], list[str]]]:
    """Return for each group its hyper-parameters, and keys and names of its parameters."""
    groups = []
    for group in told.values() if isinstance(told, dict) else told if isinstance(told, (list, tuple)) else ():
        if not isinstance(group, dict):
            continue
        keys, names = group.get("params", ()), group.get("param_names") or ()
        keys = keys.values() if isinstance(keys, dict) else keys if isinstance(keys, (list, tuple)) else ()
        settings = {str(k): _setting(v) for k, v in group.items() if k not in ("params", "param_names")}
        groups.append((settings, [str(k) for k in keys], [str(n) for n in names]))
    return groups


def _setting(value: Any) -> Any:
    """Return a hyper-parameter; one that is kept as a tensor is read."""
    if not isinstance(value, Entry) or value.numel != 1:
        return value
    with contextlib.closing(value.source.open()) as opened:
        raw = opened.read(0, value.nbytes).copy()
    return torch.from_numpy(raw).view(value.dtype).item()


def _owned(state: dict[Any, Any], group: dict[str, Any]) -> Owned:
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Entry)}
    numbers = {str(k): v for k, v in state.items() if isinstance(v, (int, float))}
    return Owned(tensors=tensors, numbers=numbers, group=group)


def shape_of(owned: Owned) -> tuple[int, ...] | None:
    """Return the shape of the parameter that state belongs to; None where the state does not show it."""
    for key, entry in owned.tensors.items():
        if key not in ("step", "row_var", "col_var") and entry.shape != ():
            return entry.shape
    for key, entry in owned.tensors.items():
        if key != "step" and entry.numel == 1:
            return entry.shape
    return None


def _named(name: str, weights: dict[Path, Entry]) -> Path | None:
    ending = [path for path in weights if ".".join(path) == name or ".".join(path[1:]) == name]
    return ending[0] if ending else None


def _containers(weights: dict[Path, Entry]) -> Iterator[dict[Path, Entry]]:
    """Yield the trainable-looking weights of each state dict in the file, the largest first."""
    sorts: dict[Path, dict[Path, Entry]] = {}
    seen = set()
    for path, entry in weights.items():
        if entry.storage is not None and entry.storage in seen:
            continue  # tied: the optimizer has it once
        seen.add(entry.storage)
        if entry.dtype.is_floating_point and not looks_like_buffer(path[-1]):
            sorts.setdefault(path[:-1], {})[path] = entry
    yield from sorted(sorts.values(), key=len, reverse=True)


def _alone(groups: Sequence[Sequence[Owned]], weights: dict[Path, Entry]) -> dict[Path, Owned]:
    """Return the weight of each parameter whose shape no other one has."""
    states: dict[tuple[int, ...], list[Owned]] = {}
    for owned in (owned for group in groups for owned in group):
        shape = shape_of(owned)
        if shape is not None:
            states.setdefault(shape, []).append(owned)
    found: dict[Path, Owned] = {}
    for path, entry in weights.items():
        alike = sum(1 for each in weights.values() if each.shape == entry.shape)
        if alike == 1 and len(states.get(entry.shape, ())) == 1:
            found[path] = states[entry.shape][0]
    return found


def _aligned(groups: Sequence[Sequence[Owned]], weights: dict[Path, Entry]) -> dict[Path, Owned]:
    """Return the weight of each parameter for which there is but one; nothing where shapes do not fit."""
    found: dict[Path, Owned] = {}
    free = dict(weights)
    for group in sorted(groups, key=len, reverse=True):
        shaped = [(owned, shape) for owned in group if (shape := shape_of(owned)) is not None]
        paths = list(free)
        first = _embedded([s for _, s in shaped], [free[p].shape for p in paths])
        if first is None:
            return {}
        backwards = _embedded([s for _, s in reversed(shaped)], [free[p].shape for p in reversed(paths)])
        assert backwards is not None
        last = [len(paths) - 1 - index for index in reversed(backwards)]
        for (owned, _), low, high in zip(shaped, first, last, strict=True):
            if low == high:
                found[paths[low]] = owned
        taken = {paths[low] for low, high in zip(first, last, strict=True) if low == high}
        free = {path: entry for path, entry in free.items() if path not in taken}
    return found


def _embedded(shapes: Sequence[tuple[int, ...]], among: Sequence[tuple[int, ...]]) -> list[int] | None:
    """Return the first positions at which shapes stand in this order among others; None where they do not."""
    found, at = [], 0
    for shape in shapes:
        while at < len(among) and among[at] != shape:
            at += 1
        if at == len(among):
            return None
        found.append(at)
        at += 1
    return found
