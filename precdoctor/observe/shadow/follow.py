"""An operation run in float64 beside itself, and what is known of the error that lies between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from precdoctor.observe.lineage.made import storage_key
from precdoctor.observe.probe.operations import tensors_in
from precdoctor.observe.shadow.digits import DigitWatch, measured
from precdoctor.observe.shadow.infinite import InfinityWatch, is_finite
from precdoctor.observe.shadow.kinds import Kind
from precdoctor.observe.shadow.look import Look, adds_up, floats, written
from precdoctor.observe.shadow.marks import Marks
from precdoctor.observe.shadow.schedules import ScheduleWatch
from precdoctor.observe.shadow.table import (
    LARGEST,
    Origin,
    Shadow,
    ShadowTable,
    TooLarge,
    replay,
    storage_numel,
    whole,
)

#: what float64 or our bookkeeping cannot do: the result counts as exact from there on
_CANNOT = (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, TooLarge)


class Follower:
    """Runs operations on exact values and keeps what comes out beside their results."""

    def __init__(self, table: ShadowTable, marks: Marks, infinite: InfinityWatch, digits: DigitWatch) -> None:
        self._table, self._marks, self._infinite, self._digits = table, marks, infinite, digits
        self.schedules = ScheduleWatch(table, digits)
        #: exact values of what is about to be written into, flat, by storage
        self._before: dict[int, Tensor] = {}
        #: results were left out for their size, or for that of all of them together
        self.left_out = False

    def before(self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the exact values that an operation is about to write over."""
        self._before.clear()
        if kind.restarts or kind.overwrites:
            return
        moves = kind.moves and not adds_up(kind, args, kwargs)
        if moves and not self._table.has_any(floats((*args, *kwargs.values()))):
            return
        for tensor in written(kind, args):
            if is_parameter(tensor) or self._table.get(tensor) is not None:
                continue
            if storage_numel(tensor) <= LARGEST:
                self._before[storage_key(tensor)] = whole(tensor)

    def follow(self, look: Look, outs: Sequence[Tensor]) -> bool:
        """Run an operation in float64 and compare; return False where that can't be done."""
        flats: dict[int, Tensor] = {}
        try:
            exacts = self._exact(look, outs, flats)
        except _CANNOT:
            return False
        finally:
            self._before.clear()
        if look.kind.wave:
            self._digits.phase(look)
        look.sums = self._marks.adds_sums(look)
        if look.kind.reduces or look.sums:
            self._marks.sums(outs)
        if look.kind.log:
            self._marks.logs(outs)
        shadows = [s for t in look.inputs if (s := self._table.get(t)) is not None]
        for out, exact in zip(outs, exacts, strict=True):
            try:
                self._compare(look, out, exact, flats.get(storage_key(out)), shadows)
            except TooLarge:
                self.left_out = True
                self._table.drop(storage_key(out))
        return True

    def _exact(self, look: Look, outs: Sequence[Tensor], flats: dict[int, Tensor]) -> list[Tensor]:
        """Return the exact results; those written into lie in ``flats``, which are filled."""
        used: set[int] = set()
        for tensor in look.written:
            key, shadow = storage_key(tensor), self._table.get(tensor)
            if shadow is not None:
                flats[key] = shadow.values
            elif key in self._before:
                flats[key] = self._before[key]
            elif look.kind.overwrites:
                flats[key] = whole(tensor)
            else:
                raise ValueError  # what was there before is gone

        def value(tensor: Tensor) -> Tensor:
            flat = flats.get(storage_key(tensor)) if tensor.is_floating_point() else None
            if flat is not None:
                return flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
            found = self._table.value(tensor)
            used.add(storage_key(found))
            return found

        operation = look.operation
        result = replay(operation.func, operation.args, operation.kwargs, value)
        if look.written:
            return [value(out) for out in outs]
        pairs = zip(operation.outputs, tensors_in((result,)), strict=True)
        exacts = [exact for out, exact in pairs if any(out is t for t in outs)]
        if any(exact.shape != out.shape for exact, out in zip(exacts, outs, strict=True)):
            raise ValueError
        return [t.clone() if storage_key(t) in used else t for t in exacts]

    def _compare(
        self, look: Look, out: Tensor, exact: Tensor, flat: Tensor | None, shadows: Sequence[Shadow]
    ) -> None:
        """Keep the exact values beside a result, and whose damage it carries."""
        self.schedules.follow(look, out)
        errors = measured(out, exact)
        relative, same = errors.relative, errors.relative == 0.0 and errors.finite
        if not errors.finite and not look.operation.backward and not is_finite(out):
            self._infinite.look(look, out, exact)
        elif look.written:
            self._infinite.forget(out)
        births = self._marks.births(look, out)
        known = self._table.get(out) if flat is not None else None
        if same and known is None:
            if births:
                self._marks.born([out], births)
            return
        origin = self._origin(look, out, relative, shadows)
        sources = [s for t in look.inputs if (s := self._infinite.site(t)) is not None]
        source = next((s for s in sources if s.kind != "undefined"), None)
        damage, magnified = self._digits.inherited(look, shadows, source, out, exact, relative)
        if damage is None and (look.kind.cancels or look.kind.vanishes):
            damage = self._digits.cancelled(look, out, exact, errors)
        if damage is None and (look.kind.cancels or look.adds_up):
            worst = max(shadows, key=lambda s: s.error, default=None)
            to_log = worst is not None and self._marks.is_log(worst.memory.key)
            damage = self._digits.accumulated(look, out, exact, errors, origin, to_log=to_log)
        if known is None:
            known = self._table.put(out, exact) if flat is None else self._table.keep(out, flat)
        elif damage is None and out.numel() < known.values.numel():
            damage, magnified = known.damage, known.magnified  # that of the rest of the storage
        known.error, known.origin, known.births = relative, origin, births
        known.damage, known.magnified = damage, magnified
        if out.numel() == 1:
            known.made = shadows[0].made if look.moves and shadows else (look.spot, look.kind.name)

    def _origin(self, look: Look, out: Tensor, relative: float, shadows: Sequence[Shadow]) -> Origin | None:
        """Return where most of a result's error was brought in."""
        largest = max(shadows, key=lambda s: s.error, default=None)
        if look.adds_up:
            return self._origin_of_sum(look, out, relative, largest)
        rounding = torch.finfo(out.dtype).eps
        # squares of independent errors add up; more than rounding brings in is an error that has grown
        if largest is None or (relative**2 > 2 * largest.error**2 and relative <= rounding):
            return Origin(look.spot, look.kind.name, out.dtype, self._marks.is_probability(out))
        return largest.origin

    def _origin_of_sum(
        self, look: Look, out: Tensor, relative: float, largest: Shadow | None
    ) -> Origin | None:
        """Return where most of the error of a sum by index was brought in: it is rounded with each term.

        The errors of the terms average out in it, so that what is beyond them is its own.
        """
        begun = self._table.get(look.inputs[0]) if look.inputs else None
        if largest is None or relative**2 > (2 if largest is begun else 1) * largest.error**2:
            return Origin(look.spot, look.kind.name, out.dtype)
        return largest.origin


def is_parameter(tensor: Tensor) -> bool:
    """Tell whether a tensor is a parameter, or a leaf that is trained."""
    return type(tensor) is nn.Parameter or (tensor.is_leaf and tensor.requires_grad)
