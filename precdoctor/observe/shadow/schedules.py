"""Schedules: tables that are looked up by a timestep and begin next to 1, where a low format has no numbers.

What diffusion adds of noise is the root of 1 - a. Of the table only the first few elements lose their digits,
which no norm of the whole shows, and these few are the first timesteps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.shadow.digits import NARROW, DigitWatch, share_off
from precdoctor.observe.shadow.look import Look
from precdoctor.observe.shadow.sites import CancellationSite
from precdoctor.observe.shadow.table import ShadowTable

#: elements of a table that is a schedule
_SHORTEST, _LONGEST = 32, 1 << 16
#: share of the elements off by half their value from which a schedule is hurt: a few timesteps in a thousand
#: are not worth a word
_HURT_SHARE = 0.01
_LOOKED_UP = frozenset(("index", "index_select", "gather", "take"))
_ROOTS = frozenset(("sqrt", "rsqrt", "log", "log2", "log10", "reciprocal"))


class _Values(NamedTuple):
    """Values of a schedule."""

    memory: Memory
    #: the whole table as it is, in the format that the values have now, and exact
    table: Tensor
    exact: Tensor


class _Rest(NamedTuple):
    """What is left of a number less values of a schedule."""

    memory: Memory
    site: CancellationSite
    #: share of the table for which it is off by half
    share: float


class ScheduleWatch:
    """Follows values of schedules to the root, logarithm or quotient of what they leave of a number."""

    def __init__(self, table: ShadowTable, digits: DigitWatch) -> None:
        self._table, self._digits = table, digits
        self._values: dict[int, _Values] = {}
        self._rests: dict[int, _Rest] = {}

    def looked_up(self, look: Look, out: Tensor) -> None:
        """Take note of values that were looked up in a table that rises or falls all along."""
        if look.kind.name not in _LOOKED_UP or not look.inputs:
            return
        values = self._of(look.inputs[0])
        if values is not None:
            self._values[storage_key(out)] = values._replace(memory=Memory(out))

    def follow(self, look: Look, out: Tensor) -> None:
        """Look at an operation that has run."""
        source = look.inputs[0] if look.inputs else None
        if source is None or look.written:
            return
        if look.kind.same:
            values = self._values.get(storage_key(source))
            if values is not None and not values.memory.gone:
                table = values.table.to(out.dtype)
                self._values[storage_key(out)] = _Values(Memory(out), table, values.exact)
        elif look.kind.name == "rsub" and len(look.inputs) == 1 and out.dtype in NARROW:
            self._left(look, source, out)
        elif self._rests:
            self._rooted(look)

    def sweep(self) -> None:
        """Forget memory that is gone."""
        self._values = {key: values for key, values in self._values.items() if not values.memory.gone}
        self._rests = {key: rest for key, rest in self._rests.items() if not rest.memory.gone}

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()
        self._rests.clear()

    def _of(self, tensor: Tensor) -> _Values | None:
        """Return what is known of values of a schedule, or of a schedule itself."""
        known = self._values.get(storage_key(tensor))
        if known is not None and not known.memory.gone:
            return known
        if tensor.ndim != 1 or not _SHORTEST <= tensor.numel() <= _LONGEST or tensor.requires_grad:
            return None
        exact = self._table.value(tensor).clone()
        steps = exact.diff()
        if not bool(((steps >= 0).all() | (steps <= 0).all()) & (steps != 0).any()):
            return None
        return _Values(Memory(tensor), tensor.detach().clone(), exact)

    def _left(self, look: Look, source: Tensor, out: Tensor) -> None:
        values = self._of(source)
        if values is None:
            return
        operation = look.operation
        rest, exact = (
            operation.func(table, *operation.args[1:], **operation.kwargs)
            for table in (values.table, values.exact)
        )
        share = share_off(rest, exact)
        if share < _HURT_SHARE:
            return
        shadow, size = self._table.get(source), float(torch.linalg.vector_norm(values.exact))
        before = float(torch.linalg.vector_norm(values.table.double() - values.exact)) / size
        site = self._digits.site(look, out)
        site.see(look, shadow.origin if shadow is not None else None, shadow.births if shadow else ())
        remaining = float(torch.linalg.vector_norm(exact)) / size
        site.lost(before=before, error=0.0, share=share, remaining=remaining)
        self._rests[storage_key(out)] = _Rest(Memory(out), site, share)

    def _rooted(self, look: Look) -> None:
        name, inputs = look.kind.name, look.inputs
        divisor = inputs[1] if name == "div" and len(inputs) == 2 else None
        power = look.operation.args[1] if name == "pow" and len(look.operation.args) > 1 else None
        root = name in _ROOTS or (isinstance(power, float) and power < 1)
        tensor = inputs[0] if root else divisor
        known = self._rests.get(storage_key(tensor)) if tensor is not None else None
        if known is not None and not known.memory.gone:
            known.site.reach("schedule", look.number, look.spot, known.share)
