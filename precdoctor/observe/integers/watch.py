"""Integers in formats that can't hold them: finds the casts that lose digits. An instrument of the probe.

Casts, copies, operations that cast integers on their own, and ranges and counts made in a low format. What
becomes of the numbers is followed by `IntegerTrails`; nothing is claimed without a use that depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from precdoctor.evidence import LostIntegers, Place
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.integers.lost import (
    BITS,
    MOST,
    Loss,
    beyond,
    fills_grid,
    integral,
    is_sequence,
    loss_between,
    ulp_of,
)
from precdoctor.observe.integers.uses import FACTORS, FEWEST, REMAINDERS, SUMS, IntegerTrails, Tag, smallest
from precdoctor.observe.lineage.made import Memory
from precdoctor.observe.models import Models
from precdoctor.observe.probe.operations import Operation
from precdoctor.observe.watch import is_plain

_RANGES = ("aten::arange", "aten::linspace")
_CASTS = ("aten::_to_copy", "aten::copy_")
#: they count where they sum integers
_COUNTS = ("aten::cumsum", "aten::sum")
_LOOKED_AT = FACTORS | SUMS | REMAINDERS | {*_CASTS}


def _by_autocast(out: Tensor) -> bool:
    """Tell whether autocast made a cast: inside a region it is off while it casts, and on for the program."""
    device = out.device.type
    inside = torch.autocast_increment_nesting() > 1
    torch.autocast_decrement_nesting()
    off = not torch.is_autocast_enabled(device)
    return inside and off and out.dtype == torch.get_autocast_dtype(device)


class IntegerWatch:
    """Follows integers that lost digits; see the module's docstring."""

    def __init__(self, code: UserCode) -> None:
        self._trails = IntegerTrails(code)

    # ------------------------------------------------------------------ told by the probe

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Nothing: what is written over keeps its tag until it is known what was written."""

    def after(self, operation: Operation) -> None:
        """Look for casts that lose integers, and follow those that did."""
        if operation.backward:
            return
        name = operation.name
        if name in _RANGES:
            self._range(operation)
            return
        if name in _COUNTS and self._counted(operation):
            return
        if name not in _LOOKED_AT and not self._trails:
            return
        inputs = [t for t in operation.inputs if is_plain(t)]
        tags = [self._trails.of(t) for t in inputs]
        if name in _CASTS:
            self._cast(operation, inputs, tags)
            return
        if name in FACTORS or name in SUMS or name in REMAINDERS:
            tags = self._promoted(operation, inputs, tags)
        if any(tag is not None for tag in tags):
            self._trails.follow(operation, name, inputs, tags)
        elif name in REMAINDERS:
            self._given(operation, inputs)

    def step_begins(self, *_: Any) -> None:
        """Forget what is gone."""
        self._trails.forget()

    def fall_asleep(self) -> None:
        """Forget what is gone; what lives on may be used later."""
        self.step_begins()

    # ------------------------------------------------------------------ where digits are lost

    def _range(self, operation: Operation) -> None:
        """Look at a range that is made: in a low format, beside the exact one."""
        out, args = operation.outputs[0], operation.args
        if out.dim() != 1 or out.numel() < FEWEST or not out.is_floating_point():
            return
        if operation.name == "aten::linspace":
            start, step = float(args[0]), (float(args[1]) - float(args[0])) / (out.numel() - 1)
        else:
            start = float(args[0]) if len(args) > 1 else 0.0
            step = float(args[2]) if len(args) > 2 else 1.0
        if step == 0:
            return
        if out.dtype not in (torch.bfloat16, torch.float16):
            self._trails.put(out, None, 0.0, abs(step))
            return
        exact = start + step * torch.arange(out.numel(), dtype=torch.float64, device=out.device)
        loss = loss_between(exact, out, abs(step))
        if loss is not None:
            site = self._trails.note(operation, "made", "", out.dtype, loss)
            self._trails.rounded(exact, out, site, loss, abs(step))

    def _counted(self, operation: Operation) -> bool:
        """Look at a sum, or a running one, of integers in a low format; tell whether it lost digits."""
        out = operation.outputs[0] if operation.outputs else None
        source = operation.args[0]
        if out is None or out.dtype not in (torch.bfloat16, torch.float16) or not is_plain(source):
            return False
        if source.requires_grad or source.numel() > MOST or not beyond(out, out.dtype):
            return False
        wide = source.detach().double()
        if not torch.equal(wide, wide.round()):
            return False
        kwargs = {**operation.kwargs, "dtype": torch.float64}
        loss = loss_between(operation.func(wide, *operation.args[1:], **kwargs), out)
        if loss is None:
            return False
        before = str(source.dtype).removeprefix("torch.")
        site = self._trails.note(operation, "counted", before, out.dtype, loss)
        self._trails.put(out, site, loss.error, 1.0)
        return True

    def _cast(self, operation: Operation, inputs: list[Tensor], tags: list[Tag | None]) -> None:
        """Look at a cast, or a copy into a tensor of another format."""
        source, out = inputs[-1] if inputs else None, operation.outputs[0] if operation.outputs else None
        if source is None or out is None or not is_plain(out) or source.shape != out.shape:
            if out is not None and inputs:
                self._trails.drop(out)  # spread by a copy: followed no further
            return
        tag = tags[-1]
        if not out.is_floating_point():
            if tag is not None and tag.site is not None and source.is_floating_point():
                self._trails.put(out, tag.site, tag.error, tag.unit, index=True)
            elif out.untyped_storage()._cdata != source.untyped_storage()._cdata:
                self._trails.drop(out)
            return
        if tag is not None and tag.site is not None:
            self._trails.put(out, tag.site, tag.error, tag.unit)
            return
        unit = tag.unit if tag is not None else 0.0
        if out.dtype in BITS and source.dtype != out.dtype:
            loss = self._loss(source, out, unit)
            if loss is not None:
                how = "autocast" if source.is_floating_point() and _by_autocast(out) else "cast"
                before = str(source.dtype).removeprefix("torch.")
                site = self._trails.note(operation, how, before, out.dtype, loss)
                self._trails.rounded(source, out, site, loss, unit or 1.0)
                return
        if not unit and not source.is_floating_point() and not source.is_complex() and source.dim():
            unit = 1.0
        if unit and out.dtype in (torch.float32, torch.float64):
            self._trails.put(out, None, 0.0, unit)
        else:
            self._trails.drop(out)

    def _loss(self, source: Tensor, out: Tensor, unit: float) -> Loss | None:
        """Return what became of integers, or of multiples of a unit that is known; None for other numbers."""
        if not source.numel() or source.is_complex() or source.dtype in (torch.bool, out.dtype):
            return None
        if not unit and source.is_floating_point():
            if source.requires_grad or source.numel() < FEWEST or out.element_size() >= source.element_size():
                return None
            if out.dtype == torch.float32:  # of other formats only what lies beyond all its integers
                known = beyond(source, out.dtype) and not beyond(source, source.dtype)
                return loss_between(source, out) if known else None
            columns = integral(source)
            if columns is None:
                return None
            if not bool(columns.all()):
                source, out = source[..., columns], out[..., columns]
        unit = unit or 1.0
        if unit == 1 and not beyond(source, out.dtype):
            return None
        return None if unit != 1 and out.dtype == torch.float32 else loss_between(source, out, unit)

    def _promoted(
        self, operation: Operation, inputs: list[Tensor], tags: list[Tag | None]
    ) -> list[Tag | None]:
        """Tag integers that an operation casts on its own, to go with what it has beside them."""
        out = operation.outputs[0] if operation.outputs else None
        if out is None or out.dtype not in BITS or all(t.is_floating_point() for t in inputs):
            return tags
        found = list(tags)
        for index, tensor in enumerate(inputs):
            whole = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
            if not whole or not tensor.dim() or tags[index] is not None:
                continue
            tag = Tag(Memory(tensor), None, 0.0, 1.0)
            if beyond(tensor, out.dtype):
                loss = loss_between(tensor, tensor.to(out.dtype))
                if loss is not None:
                    before = str(tensor.dtype).removeprefix("torch.")
                    tag.site = self._trails.note(operation, "promotion", before, out.dtype, loss)
                    tag.error = loss.error
            found[index] = tag
        return found

    def _given(self, operation: Operation, inputs: list[Tensor]) -> None:
        """Look at a remainder of numbers that were rounded before anybody saw them: data of a file."""
        if not inputs or inputs[0].dtype not in BITS or inputs[0].numel() < FEWEST:
            return
        numbers = inputs[0]
        largest, period = float(numbers.abs().max()), smallest(operation)
        if not period or not 2 ** BITS[numbers.dtype] < largest < float("inf"):
            return
        ulp = ulp_of(largest, numbers.dtype)
        if ulp < 2 or not fills_grid(numbers, ulp):
            return
        distinct = int(torch.unique(numbers.reshape(-1)[: 1 << 16]).numel())
        loss = Loss(min(numbers.numel(), 1 << 16), 0, distinct, 0, largest, ulp / 2, 0, is_sequence(numbers))
        site = self._trails.note(operation, "given", "", numbers.dtype, loss)
        self._trails.use(operation, site, "periodic", ulp / 2 / period)

    # ------------------------------------------------------------------ afterwards

    def look(self, models: Models) -> None:
        """Note the names of modules while they live."""
        self._trails.look(models)

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[LostIntegers, ...]:
        """Return what was lost and used."""
        return self._trails.evidence(place)
