"""Data on its way onto a grid: how much of what a quantizer gets lies beyond its range, or becomes zero.

A clamp and a rounding belong together where one follows the other with nothing but scaling between; a cast
to 8 bits is both. What rounds to a sign, or to a sign and zero, has no range to leave.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from precdoctor.evidence import DataQuantizer, Place
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.models import Models
from precdoctor.observe.probe.forwards import innermost_module
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.quantizers.columns import Columns, after_rounding, columns_of
from precdoctor.observe.quantizers.fidelity import decibels, sample
from precdoctor.observe.watch import Watch, is_plain

_CLAMPS = ("aten::clamp", "aten::clamp_", "aten::clip", "aten::clip_", "aten::hardtanh", "aten::hardtanh_")
_ROUNDS = ("aten::round", "aten::round_", "aten::floor", "aten::floor_")
_SCALINGS = frozenset(
    f"aten::{name}{suffix}"
    for name in ("mul", "div", "add", "sub", "neg", "clone", "_to_copy", "rsub")
    for suffix in ("", "_")
)
#: elements of a tensor from which it is looked at: fewer say nothing of a share
_FEWEST = 32
#: values of a tensor that its rounding is measured on
_MOST = 1 << 14


@dataclass(slots=True)
class _Site:
    spot: Spot | None
    module: weakref.ref[nn.Module] | None
    name: str = ""
    seen: list[tuple[int, _Look]] = field(default_factory=list)
    #: of all passes, by their number: a function may be given several tensors in one forward pass
    columns: dict[int, Columns] = field(default_factory=dict)


@dataclass(slots=True)
class _Look:
    """What a quantizer did to its values at one time."""

    #: shares of the values other than 0 that were clipped, and of all that are not finite
    clipped: float
    non_finite: float
    #: share of the values other than 0 that are used as zero, and the largest over the bound of the range
    flushed: float = 0.0
    reach: float = 1.0
    #: decibels of signal over the rounding's error; None where that is not known, or there is none
    sqnr_db: float | None = None
    columns: Columns | None = None


@dataclass(slots=True)
class _Clamped:
    """A tensor that a clamp gave, and what it did; or one that was rounded and not yet clamped."""

    memory: Memory
    clipped: float | None
    #: values other than 0 before it
    filled: float
    #: see `_Look`; what is not known yet is harmless
    flushed: float = 0.0
    reach: float = 1.0
    sqnr_db: float | None = None
    columns: Columns | None = None


class ClippingWatch:
    """Looks for data quantizers in the forward passes of modules; an instrument of the operation probe."""

    def __init__(self, code: UserCode, is_weight: Callable[[Tensor], bool]) -> None:
        self._code, self._is_weight = code, is_weight
        self._clamped: dict[int, _Clamped] = {}
        self._rounded: dict[int, _Clamped] = {}
        self._sites: dict[tuple[Spot | None, int], _Site] = {}
        #: values of the tensor that a rounding is about to write over, and its columns
        self._before: tuple[Tensor, Columns | None] | None = None

    # ------------------------------------------------------------------ told by the probe

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep a sample of what is rounded in place; what else is written over was seen when it was made."""
        schema = getattr(func, "_schema", None)
        source = next(tensors_in((*args, *kwargs.values())), None)
        if schema is not None and schema.name in _ROUNDS and source is not None and is_plain(source):
            self._before = _sample(source), columns_of(source)

    def step_begins(self, *_: Any) -> None:
        """Forget what lies between operations."""
        self._clamped.clear()
        self._rounded.clear()

    def fall_asleep(self) -> None:
        """Forget what lies between operations."""
        self.step_begins()

    def after(self, operation: Operation) -> None:
        """Look at clamps, roundings and what lies between."""
        before, self._before = self._before, None
        if operation.backward:
            return
        name = operation.name
        if name in _CLAMPS:
            self._clamp(operation)
        elif name in _ROUNDS or _to_float8(operation):
            self._round(operation, before)
        elif name in _SCALINGS and (self._clamped or self._rounded):
            self._pass_on(operation)
        elif "fake_quantize_per_" in name:
            self._fake(operation)

    # ------------------------------------------------------------------ the operations

    def _clamp(self, operation: Operation) -> None:
        source, out = _ends(operation)
        if source is None or out is None or self._is_weight(source):
            return
        rest = [*operation.args[1:], operation.kwargs.get("min"), operation.kwargs.get("max")]
        bounds = [b for b in rest if b is not None]
        cut, non_finite = _cut(source, out, bounds)
        rounded = self._rounded.get(storage_key(source))
        filled = float((source != 0).sum()) if rounded is None else rounded.filled
        clipped, reach = cut / filled if filled else 0.0, _reach(out, bounds)
        if rounded is not None:
            sign, flushed, sqnr_db = _is_sign(out), rounded.flushed, rounded.sqnr_db
            clipped, columns = (0.0, None) if sign else (clipped, rounded.columns)
            self._note(operation, _Look(clipped, non_finite, flushed, reach, sqnr_db, columns))
        else:
            self._clamped[storage_key(out)] = _Clamped(Memory(out), clipped, filled, reach=reach)

    def _round(self, operation: Operation, before: tuple[Tensor, Columns | None] | None) -> None:
        source, out = _ends(operation)
        if source is None or out is None or self._is_weight(source):
            return
        clamped = self._clamped.pop(storage_key(source), None)
        values = out.float()
        sampled, columns = before if before is not None else (_sample(source), columns_of(source))
        flushed, sqnr_db = _left_of(sampled, _sample(values))
        filled = float((sampled != 0).double().mean()) * source.numel()
        columns = after_rounding(columns, values)
        if _to_float8(operation):
            limit = torch.finfo(out.dtype).max
            beyond = float((source.abs() > limit).sum()) / filled if filled else 0.0
            if clamped is not None and clamped.clipped is not None:
                beyond = max(beyond, clamped.clipped)
            reach = _reach(values, [limit])
            self._note(operation, _Look(beyond, _lost(values), flushed, reach, sqnr_db, columns))
        elif clamped is not None and clamped.clipped is not None:
            clipped, columns = (0.0, None) if _is_sign(values) else (clamped.clipped, columns)
            look = _Look(clipped, _lost(values), flushed, clamped.reach, sqnr_db, columns)
            self._note(operation, look)
        else:
            rounded = _Clamped(Memory(out), None, filled, flushed, sqnr_db=sqnr_db, columns=columns)
            self._rounded[storage_key(out)] = rounded

    def _fake(self, operation: Operation) -> None:
        source = next((t for t in operation.inputs if t.is_floating_point() and t.numel() > 1), None)
        mask = next((t for t in operation.outputs if t.dtype == torch.bool), None)
        if source is None or mask is None or source.numel() < _FEWEST or self._is_weight(source):
            return
        filled = source != 0
        count = float(filled.sum())
        lowest, highest = operation.args[-2:]
        clipped = float((~mask & filled).sum()) / count if count and highest - lowest > 2 else 0.0
        flushed, sqnr_db = _left_of(_sample(source), _sample(operation.outputs[0]))
        columns = after_rounding(columns_of(source), operation.outputs[0]) if highest - lowest > 2 else None
        reach = _reach_of_fake(operation, source)
        self._note(operation, _Look(clipped, 0.0, flushed, reach, sqnr_db, columns))

    def _pass_on(self, operation: Operation) -> None:
        source, out = _ends(operation)
        if source is None or out is None:
            return
        for table in (self._clamped, self._rounded):
            known = table.get(storage_key(source))
            if known is not None:
                table[storage_key(out)] = replace(known, memory=Memory(out))

    def _note(self, operation: Operation, look: _Look) -> None:
        module = innermost_module(operation.frame)
        if module is None or not module.training:  # not in the forward pass of a model that is trained
            return
        spot = self._code.innermost(operation.frame)[0]
        site = self._sites.setdefault((spot, id(module)), _Site(spot, weakref.ref(module)))
        if site.module is None or site.module() is not module:
            site.module = weakref.ref(module)
        if look.columns is not None:
            before = site.columns.get(len(look.columns.varied))
            found = look.columns if before is None else before.then(look.columns)
            site.columns[len(found.varied)] = found
        site.seen.append((operation.step, look))

    # ------------------------------------------------------------------ afterwards

    def look(self, models: Models) -> None:
        """Note the names of the modules while they live."""
        names = models.module_names() if self._sites else {}
        for site in self._sites.values():
            module = site.module() if site.module is not None else None
            if module is not None:
                site.name = names.get(id(module), site.name)

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[DataQuantizer, ...]:
        """Return what was seen, in the order of first sight."""
        return tuple(
            DataQuantizer(
                module=site.name,
                place=place(site.spot),
                seen=len(site.seen),
                first_step=site.seen[0][0],
                last_step=site.seen[-1][0],
                clipped_share_first=site.seen[0][1].clipped,
                clipped_share=max(look.clipped for look in last),
                non_finite_share=last[-1].non_finite,
                flushed_share=min(look.flushed for look in last),
                reach=max(look.reach for look in last),
                sqnr_db=_largest([look.sqnr_db for look in last]),
                columns=worst.count if worst is not None else 0,
                lost_columns=worst.lost if worst is not None else 0,
                column_passes=worst.passes if worst is not None else 0,
            )
            for site in self._sites.values()
            if (last := [look for step, look in site.seen if step == site.seen[-1][0]])
            for worst in [max(site.columns.values(), key=lambda c: c.lost / max(c.count, 1), default=None)]
        )


def _ends(operation: Operation) -> tuple[Tensor | None, Tensor | None]:
    """Return the tensor that goes in and the one that comes out, None where they are not looked at."""
    inputs = operation.inputs[1:] if operation.name == "aten::copy_" else operation.inputs
    source = next((t for t in inputs if is_plain(t) and t.numel() >= _FEWEST), None)
    out = next((t for t in operation.outputs if is_plain(t)), None)
    if source is None or out is None or not source.is_floating_point() or out.numel() != source.numel():
        return None, None
    return source, out


def _cut(source: Tensor, out: Tensor, bounds: list[Any]) -> tuple[float, float]:
    """Return how many values are cut by a bound other than 0, and the share of those that are not finite."""
    filled = source != 0
    moved = source != out if source is not out else filled  # written over: what was there before is gone
    # a lower bound of 0 is a rectifier; what lies beyond the others is lost range
    cut = torch.zeros_like(filled)
    for bound in bounds:
        if isinstance(bound, Tensor) or bound != 0:
            cut |= (out == bound) & (out != 0) & moved
    return float((cut & filled).sum()), float((~torch.isfinite(source)).float().mean())


def _reach(values: Tensor, bounds: list[Any]) -> float:
    """Return the largest magnitude over that of the larger bound; 1 where that is not known."""
    sizes = [float(b.detach().abs().max()) if isinstance(b, Tensor) else abs(float(b)) for b in bounds]
    limit = max(sizes, default=0.0)
    return float(values.detach().abs().max()) / limit if 0 < limit < math.inf else 1.0


def _is_sign(codes: Tensor) -> bool:
    """Tell whether no code is beyond 1: the grid is ternary or binary by choice."""
    return float(codes.detach().abs().max()) <= 1


def _reach_of_fake(operation: Operation, source: Tensor) -> float:
    """Return the largest magnitude over what the quantizer of its channel reaches; 1 where not known."""
    scale, *rest = operation.args[1:]
    lowest, highest = rest[-2:]
    size = source.detach().abs()
    if isinstance(scale, Tensor):
        channels = scale.numel() > 1
        size = size.movedim(rest[1], -1) if channels else size
        size = size / scale.detach()
    else:
        size = size / scale
    return _reach(size, [lowest - rest[0] if isinstance(rest[0], int) else lowest, highest])


def _sample(tensor: Tensor) -> Tensor:
    return sample(Watch.of(tensor.numel(), _MOST), tensor)


def _left_of(given: Tensor, used: Tensor) -> tuple[float, float | None]:
    """Return the share of the values other than 0 that are used as zero, and the SQNR in decibels."""
    filled = given != 0
    count = float(filled.sum())
    flushed = float(((used == 0) & filled).sum()) / count if count else 0.0
    signal, noise = float(given.square().sum()), float((used - given).square().sum())
    return flushed, decibels(signal, noise)


def _largest(values: list[float | None]) -> float | None:
    """Return the largest value; None where one is not known."""
    known = [v for v in values if v is not None]
    return max(known) if known and len(known) == len(values) else None


def _lost(values: Tensor) -> float:
    return float((~torch.isfinite(values)).float().mean())


def _to_float8(operation: Operation) -> bool:
    if operation.name not in ("aten::_to_copy", "aten::copy_"):
        return False
    return any("float8" in str(t.dtype) for t in operation.outputs)
