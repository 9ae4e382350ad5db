"""Entries of a table that random numbers choose: between two numbers of a format some are never chosen.

Inverse-CDF sampling takes the entry in whose interval of a cumulated distribution a uniform number falls. An
interval that no number of the format lies in can be told exactly, whatever was drawn. The number is looked
up with a search, or by counting the bounds below it, where the count is used as an index. Of a table whose
entries are equally likely the number is scaled and truncated: there all numbers of the format are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.watch import is_plain

#: bounds, of all rows together, that are looked at
_MOST = 1 << 22
#: fewer bounds, or integers, make no table
_FEWEST = 8
_SEARCHES = ("aten::searchsorted", "aten::bucketize")
#: comparisons of bounds with a number, and whether one that lies on a bound counts as beyond it
_COMPARISONS = {"aten::lt": False, "aten::ge": False, "aten::le": True, "aten::gt": True}
#: operations that make integers of numbers, and what they add before they round down
_ROUNDINGS = {
    f"aten::{name}{suffix}": half
    for name, half in (("floor", 0.0), ("trunc", 0.0), ("round", 0.5))
    for suffix in ("", "_")
}
_CASTS = ("aten::_to_copy", "aten::copy_")
_COUNTS = ("aten::sum", "aten::argmax", "aten::count_nonzero", "aten::argmin")
_LOOKUPS = {
    "aten::embedding": 1,
    "aten::index": 1,
    "aten::index_select": 2,
    "aten::gather": 2,
    "aten::scatter": 2,
    "aten::scatter_": 2,
}
_MOVED = (
    "aten::_to_copy",
    "aten::clone",
    "aten::clamp",
    "aten::clamp_",
    "aten::add",
    "aten::sub",
    "aten::neg",
)


@dataclass(frozen=True, slots=True)
class Choice:
    """What uniform numbers choose from a table."""

    #: numbers drawn, and how many of them should, and did, choose an entry without a number of the format
    drawn: int
    expected: float
    observed: int
    #: entries with a probability, and those of them without a number, in the row with the most
    entries: int
    unreached: int


def _searched(operation: Operation) -> tuple[Tensor, Tensor, bool] | None:
    """Return bounds, numbers, and whether one on a bound is beyond it; None where nothing is searched."""
    if operation.name not in _SEARCHES or operation.kwargs.get("sorter") is not None:
        return None
    both = operation.args[:2] if operation.name == "aten::searchsorted" else operation.args[1::-1]
    if len(both) != 2 or not all(isinstance(t, Tensor) for t in both):
        return None
    right = bool(operation.kwargs.get("right")) or operation.kwargs.get("side") == "right"
    return both[0], both[1], right


def _counted(operation: Operation, numbers: Tensor) -> tuple[Tensor, Tensor, bool] | None:
    """Return the same where each number is compared with all bounds of a table: along the last dimension."""
    if operation.name not in _COMPARISONS or len(operation.inputs) != 2:
        return None
    first = operation.inputs[0] is numbers
    bounds, out = operation.inputs[1 if first else 0].detach(), operation.outputs[0]
    size = out.shape[-1] if out.dim() else 0
    bounds = bounds.reshape(-1) if bounds.numel() == size else bounds
    single = not numbers.dim() or numbers.shape[-1] == 1 or numbers.stride(-1) == 0
    if size < _FEWEST or not single or bounds.shape not in (out.shape, (size,)):
        return None
    rows = (numbers.detach()[..., :1] if numbers.dim() else numbers.detach()).expand((*out.shape[:-1], 1))
    return bounds, rows if bounds.dim() > 1 else rows[..., 0], _COMPARISONS[operation.name] != first


def _choice(bounds: Tensor, numbers: Tensor, right: bool, format: torch.dtype, top: float) -> Choice | None:
    """Return what numbers between 0 and ``top``, uniform in a 16-bit format, choose; None for no table."""
    size = bounds.shape[-1] if bounds.dim() else 0
    if size < _FEWEST or max(bounds.numel(), numbers.numel()) > _MOST or not numbers.numel():
        return None
    bounds = (bounds.detach().double() / top).contiguous()
    if not bool((bounds.diff() >= 0).all()):
        return None
    numbers = (numbers.detach().double() / top).contiguous()
    ends = bounds.clamp(0.0, 1.0)
    low = torch.cat((torch.zeros_like(ends[..., :1]), ends), -1)
    high = torch.cat((ends, torch.ones_like(ends[..., :1])), -1)
    chance = high - low
    unreached = (chance > 0) & ~_holds_number(low, high, right, format)
    index = torch.searchsorted(bounds, numbers, right=right)
    each = numbers.numel() // max(unreached.numel() // (size + 1), 1)
    if bounds.dim() == 1:
        hit, expected = unreached[index], float(chance[unreached].sum()) * numbers.numel()
    else:
        hit, expected = unreached.gather(-1, index), float(chance[unreached].sum()) * each
    most = unreached.sum(-1).reshape(-1)
    row = int(most.argmax())
    return Choice(
        numbers.numel(),
        expected,
        int(hit.sum()),
        int((chance > 0).reshape(-1, size + 1)[row].sum()),
        int(most[row]),
    )


def _holds_number(low: Tensor, high: Tensor, right: bool, format: torch.dtype) -> Tensor:
    """Tell in which intervals between 0 and 1 a number of a format lies: (low, high], or [low, high)."""
    down, up = torch.tensor(0.0).to(high), torch.tensor(1.0).to(high)
    if right:
        high = torch.nextafter(high, down)
    else:
        high = torch.where(high < 1, high, torch.nextafter(high, down))  # 1 itself is never drawn
        low = torch.where(low > 0, torch.nextafter(low, up), low)
    largest = high.to(format)
    above = largest.double() > high
    below = (largest.view(torch.int16) - 1).view(format)
    return torch.where(above, below, largest).double() >= low


def _below(limit: float, format: torch.dtype, device: torch.device) -> Tensor:
    """Return all numbers of a 16-bit format from 0 to below a limit."""
    bits = int(torch.full((), limit, dtype=format, device="cpu").view(torch.int16))
    return torch.arange(bits, dtype=torch.int16, device=device).view(format)


def _truncated(
    operation: Operation, numbers: Tensor, format: torch.dtype, low: float, high: float
) -> Choice | None:
    """Return what numbers choose that become integers: uniform in a 16-bit format, scaled to low..high."""
    half = _ROUNDINGS.get(operation.name)
    if operation.name in _CASTS:
        dtype = operation.outputs[0].dtype
        half = None if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool else 0.0
    if half is None or low < 0 or not _FEWEST <= high - low <= _MOST or not 0 < numbers.numel() <= _MOST:
        return None
    every = _below(1.0, format, numbers.device).to(numbers.dtype) * (high - low) + low
    if low and numbers.dtype == format:  # who knows where it was rounded on the way: any number may come
        own = _below(high, format, numbers.device)
        every = torch.cat((every, own[own >= low]))
    first, last = math.floor(low + half), math.ceil(high + half)

    def integers(tensor: Tensor) -> Tensor:
        return ((tensor.double() + half).floor().clamp(first, last - 1) - first).long()

    edges = torch.arange(first, last + 1, dtype=torch.float64, device=numbers.device) - half
    chance = edges.clamp(low, high).diff() / (high - low)
    unreached = chance > 0
    unreached[integers(every)] = False
    return Choice(
        numbers.numel(),
        float(chance[unreached].sum()) * numbers.numel(),
        int(unreached[integers(numbers.detach())].sum()),
        int((chance > 0).sum()),
        int(unreached.sum()),
    )


class Choices:
    """Finds where numbers choose; integers made of them are followed to where they are an index."""

    def __init__(self) -> None:
        #: what was chosen, by which numbers, and whether bounds were counted already
        self._tags: dict[int, tuple[Memory, Choice, Any, bool]] = {}

    def __bool__(self) -> bool:
        return bool(self._tags)

    def of(
        self,
        operation: Operation,
        numbers: Tensor,
        source: Any,
        format: torch.dtype,
        ends: tuple[float, float],
    ) -> Choice | None:
        """Return what numbers between two ends choose now; follow what they are compared with, or become."""
        low, top = ends
        made = _truncated(operation, numbers, format, low, top)
        if made is not None:
            out = operation.outputs[0]
            self._tags[storage_key(out)] = Memory(out), made, source, True
        if low != 0 or top <= 0:
            return None
        searched = _searched(operation)
        found = searched or _counted(operation, numbers)
        chosen = _choice(*found, format, top) if found is not None else None
        if chosen is not None and searched is None:
            out = operation.outputs[0]
            self._tags[storage_key(out)] = Memory(out), chosen, source, False
            return None
        return chosen

    def follow(self, operation: Operation) -> tuple[Choice | None, Any]:
        """Follow counts through an operation; return what was chosen, by what, where it looks entries up."""
        name = operation.name
        if name in _LOOKUPS:
            place = _LOOKUPS[name]
            for index in tensors_in(operation.args[place : place + 1]):
                tag = self._of(index)
                if tag is not None and tag[3]:
                    del self._tags[storage_key(index)]
                    return tag[1], tag[2]
            return None, None
        tag = next((t for t in map(self._of, operation.inputs) if t is not None), None)
        if tag is not None and operation.outputs and (name in _COUNTS or name in _MOVED):
            out = operation.outputs[0]
            self._tags[storage_key(out)] = Memory(out), tag[1], tag[2], tag[3] or name in _COUNTS
        return None, None

    def forget(self) -> None:
        """Forget what is gone."""
        self._tags = {key: tag for key, tag in self._tags.items() if not tag[0].gone}

    def clear(self) -> None:
        """Forget all."""
        self._tags.clear()

    def _of(self, tensor: Tensor) -> tuple[Memory, Choice, Any, bool] | None:
        tag = self._tags.get(storage_key(tensor)) if is_plain(tensor) else None
        return tag if tag is not None and not tag[0].gone else None
