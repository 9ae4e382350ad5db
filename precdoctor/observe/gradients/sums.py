"""Sums of gradients that a program keeps in float16 itself, in place: where one leaves the format's range.

An instrument of the operation probe, which goes on in the rest of a step that is too long to be looked at.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from precdoctor.observe.gradients.losses import Losses
from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.lineage.origins import Marks
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.watch import is_plain

#: operations in place that add to gradients, or set them
ADDS = frozenset(("aten::add_", "aten::_foreach_add_", "aten::copy_"))
#: elements of one sum, and wall seconds in all, up to which it is formed again in float32
_MOST_ELEMENTS, _MOST_SECONDS = 1 << 24, 2.0


class GradientSums:
    """Looks at what is added to float16 tensors that gradients are added to."""

    def __init__(self, marks: Marks, losses: Losses) -> None:
        self._marks, self._losses = marks, losses
        #: storages that gradients were added to
        self._sums: dict[int, Memory] = {}
        #: what is about to be written into: targets, and their exact values afterwards
        self._exact: list[tuple[Tensor, Tensor]] = []
        self._seconds = 0.0

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Work out a sum in float32."""
        self._exact = []
        if func._schema.name not in ADDS or self._seconds > _MOST_SECONDS:
            return
        if torch._C._current_graph_task_id() != -1:
            return  # what autograd adds up is looked at elsewhere
        targets = list(tensors_in(args[:1]))
        if not all(t.dtype == torch.float16 and is_plain(t) and not t.requires_grad for t in targets):
            return
        if sum(t.numel() for t in targets) > _MOST_ELEMENTS or not self._adds_gradients(targets, args[1:]):
            return
        start = time.perf_counter()
        wide = _widened(args)
        func(*wide, **kwargs)
        self._exact = list(zip(targets, tensors_in(wide[:1]), strict=True))
        self._seconds += time.perf_counter() - start

    def _adds_gradients(self, targets: list[Tensor], others: tuple[Any, ...]) -> bool:
        if any(map(self._is_sum, targets)):
            return True
        if not any(
            self._is_sum(t) or self._marks.is_gradient(t) for t in filter(is_plain, tensors_in(others))
        ):
            return False
        self._sums = {key: memory for key, memory in self._sums.items() if not memory.gone}
        self._sums |= {storage_key(t): Memory(t) for t in targets}
        return True

    def _is_sum(self, tensor: Tensor) -> bool:
        memory = self._sums.get(storage_key(tensor))
        return memory is not None and not memory.gone

    def persists(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Tell whether an operation adds to a sum of gradients."""
        if func._schema.name not in ADDS or not self._sums:
            return False
        return any(self._is_sum(t) for t in tensors_in(args[:1]) if is_plain(t))

    def after(self, operation: Operation) -> None:
        """Compare sums with those in float32."""
        kept, self._exact = self._exact, []
        for target, exact in kept:
            start = time.perf_counter()
            infinite = (~torch.isfinite(target) & torch.isfinite(exact)).float()
            largest = torch.where(torch.isfinite(exact), exact, 0.0).abs().max()
            row = torch.stack((infinite.max(), largest, infinite.mean(), largest * 0))
            self._losses.note("overflow", operation, row)
            self._seconds += time.perf_counter() - start

    def step_begins(self, *_: Any) -> None:
        """Nothing: sums go on over steps."""

    def fall_asleep(self) -> None:
        """Keep in mind what is added to: it may go on when the probe wakes."""


def _widened(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return arguments with the tensors that are written into as float32 copies."""
    first = args[0]
    copies = first.detach().float() if isinstance(first, Tensor) else [t.detach().float() for t in first]
    return copies, *args[1:]
