"""Gradients that are not finite and that a program replaces, element by element, by what is.

An instrument of the operation probe. It tells of infinite gradients that no step shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from precdoctor.observe.gradients.losses import Losses
from precdoctor.observe.lineage.origins import Marks
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.watch import is_plain

#: operations that replace elements of a tensor, those in place by their first argument
_REPLACES = frozenset(f"aten::{name}" for name in ("nan_to_num", "where", "masked_fill"))
_IN_PLACE = frozenset(f"aten::{name}" for name in ("nan_to_num_", "masked_fill_", "index_put_"))
#: elements up to which a gradient is looked at
_MOST_ELEMENTS = 1 << 24


class GradientPatches:
    """Counts gradients with elements that are not finite, and are after an operation of the program's own."""

    def __init__(self, marks: Marks, losses: Losses) -> None:
        self._marks, self._losses = marks, losses
        #: share of the elements that are not finite, of what is about to be written into
        self._before: Tensor | None = None

    def before(self, func: Any, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        """Look at a gradient whose elements are about to be replaced."""
        backward = torch._C._current_graph_task_id() != -1
        replaces = func._schema.name in _IN_PLACE and not backward
        self._before = self._share(tensors_in(args[:1])) if replaces else None

    def after(self, operation: Operation) -> None:
        """Take note of elements that have become finite."""
        share, self._before = self._before, None
        if operation.backward:
            return
        if operation.name in _REPLACES:
            share = self._share(operation.inputs)
        if share is None:
            return
        finite = torch.stack([torch.isfinite(t).all() for t in operation.outputs]).all()
        row = torch.stack(((finite & (share > 0)).float(), share * 0, share, share * 0))
        self._losses.note("patched", operation, row)

    def step_begins(self, *_: Any) -> None:
        """Nothing: it looks at single operations."""

    def fall_asleep(self) -> None:
        """Nothing is kept of the run's tensors."""

    def _share(self, tensors: Iterable[Tensor]) -> Tensor | None:
        """Return the share of a gradient's elements that are not finite; None where there is no gradient."""
        for tensor in tensors:
            if is_plain(tensor) and 0 < tensor.numel() <= _MOST_ELEMENTS and self._marks.is_gradient(tensor):
                return (~torch.isfinite(tensor)).float().mean()
        return None
