"""Optimizer state that is saved in, or loaded from, a format in which it underflows or overflows.

Digits below the last one do not matter to a moment; that a small one becomes 0, or a large one inf, does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precdoctor.evidence import Place, Snapshot
from precdoctor.observe.frames import Spot
from precdoctor.observe.watch import Watch, is_plain

#: elements of a tensor that are compared, tensors of one state dict, and lines kept
_SAMPLE, _TENSORS, _SITES = 4096, 10_000, 64
_LEVELS = 8
_LOW = (torch.float16, torch.bfloat16)
_FULL = (torch.float32, torch.float64)


@dataclass(slots=True)
class _Saved:
    kind: str
    key: str
    trained: str
    format: str
    spot: Spot | None
    cast: Spot | None
    step: int
    times: int = 0
    last: int = -1
    numel: int = 0
    held: int = 0
    lost: int = 0
    loaded_back: Spot | None = None


class SavedStates:
    """Collects what becomes of optimizer state on its way to a file and back; by line and key."""

    def __init__(self, cast_of: Callable[[Tensor], Spot | None]) -> None:
        self._cast_of = cast_of
        self._sites: dict[tuple[str, Spot | None, str], _Saved] = {}

    def saved(
        self, saved: Any, optimizers: list[torch.optim.Optimizer], spot: Spot | None, step: int
    ) -> None:
        """Compare the state in what is saved with that of the optimizers."""
        own: dict[tuple[str, tuple[int, ...]], list[Tensor]] = {}
        for optimizer in optimizers:
            for state in optimizer.state.values():
                for key, value in state.items() if isinstance(state, Mapping) else ():
                    if _is_state(value) and value.dtype in _FULL:
                        own.setdefault((str(key), tuple(value.shape)), []).append(value)
        for _, key, low in _low_states(saved):
            for full in own.get((key, tuple(low.shape)), ()):
                wide, narrow = _sample(full), _sample(low)
                if torch.equal(wide.to(low.dtype).float(), narrow):
                    held = wide.isfinite() & (wide != 0)
                    lost = held & ((narrow == 0) | ~narrow.isfinite())
                    found = self._of("state", key, full, low, spot, step)
                    _count(found, low, held, lost, step)
                    break

    def loaded(self, state: Any, spot: Spot | None, step: int) -> None:
        """Look at a state that an optimizer takes up.

        Its exact values are not known; but where a moment of one sign, such as an average of squares, is 0
        and another state of the element is not, it has underflowed.
        """
        rows: dict[int, list[tuple[str, Tensor]]] = {}
        for row, key, low in _low_states(state):
            rows.setdefault(row, []).append((key, low))
        numels: dict[str, int] = {}
        for members in rows.values():
            for key, low in members:
                numels[key] = numels.get(key, 0) + low.numel()
        for saved in self._sites.values():
            if saved.kind == "state" and saved.times and numels.get(saved.key) == saved.numel // saved.times:
                saved.loaded_back = saved.loaded_back or spot
        signed = {key for members in rows.values() for key, low in members if bool((_sample(low) < 0).any())}
        for members in rows.values():
            for key, low in members:
                others = [_sample(o) for name, o in members if name != key and o.shape == low.shape]
                if others and key not in signed:
                    held = (torch.stack(others) != 0).any(0)
                    found = self._of("loaded state", key, low, low, spot, step)
                    _count(found, low, held, held & (_sample(low) == 0), step)

    def _of(self, kind: str, key: str, full: Tensor, low: Tensor, spot: Spot | None, step: int) -> _Saved:
        found = self._sites.get((kind, spot, key))
        if found is None:
            trained, saved = (str(t.dtype).removeprefix("torch.") for t in (full, low))
            found = _Saved(kind, key, trained, saved, spot, self._cast_of(low), step)
            if len(self._sites) < _SITES:
                self._sites[kind, spot, key] = found
        return found

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[Snapshot, ...]:
        """Return what lost values; of what is loaded back that was seen when it was saved, once."""
        known = {s.loaded_back for s in self._sites.values() if s.kind == "state"}
        return tuple(
            Snapshot(
                kind="state" if s.kind == "state" else "loaded state",
                trained=s.trained,
                format=s.format,
                place=place(s.spot),
                cast=place(s.cast),
                times=s.times,
                first_step=s.step,
                last_step=s.last,
                parameters=(s.key,),
                numel=s.numel // max(s.times, 1),
                with_optimizer=True,
                loaded_back=place(s.loaded_back),
                changed_share=s.lost / s.held,
            )
            for s in self._sites.values()
            if s.lost and s.held and (s.kind == "state" or s.spot not in known)
        )


def _count(found: _Saved, low: Tensor, held: Tensor, lost: Tensor, step: int) -> None:
    if step != found.last or not found.times:
        found.times, found.last = found.times + 1, step
    found.numel += low.numel()
    found.held += int(held.sum())
    found.lost += int(lost.sum())


def _low_states(saved: Any) -> Iterator[tuple[int, str, Tensor]]:
    """Yield the narrow tensors of optimizers' state in what is saved: number of the parameter, key, value."""
    row = 0
    todo: list[tuple[Any, int]] = [(saved, 0)]
    while todo and row < _TENSORS:
        value, level = todo.pop(0)
        if level > _LEVELS:
            continue
        if isinstance(value, Mapping):
            states = value.get("state") if "param_groups" in value else None
            for state in states.values() if isinstance(states, Mapping) else ():
                row += 1
                for key, tensor in state.items() if isinstance(state, Mapping) else ():
                    if _is_state(tensor) and tensor.dtype in _LOW:
                        yield row, str(key), tensor
            todo += [(item, level + 1) for item in value.values()]
        elif isinstance(value, (list, tuple)) and len(value) <= _TENSORS:
            todo += [(item, level + 1) for item in value]


def _is_state(value: Any) -> bool:
    return isinstance(value, Tensor) and is_plain(value) and value.is_floating_point() and value.ndim > 0


def _sample(tensor: Tensor) -> Tensor:
    watch = Watch.of(tensor.numel(), _SAMPLE)
    return watch.view(tensor).reshape(-1).float().cpu()
