"""Sums, averages and counters that a run keeps in a low format, beside what exact arithmetic makes of them.

An instrument of the operation probe. What is added to again and again is found by what is done to it: it
is written in place, or what an instruction makes goes into the same one the next time (`Rows`). Elementwise
operations are done again in float64 on samples, from the stored values on, so that the rounding of a sum is
told apart from that of what is added to it.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from precdoctor.observe.frames import UserCode
from precdoctor.observe.lineage.gradients import function_of_engine
from precdoctor.observe.lineage.lineage import Lineage
from precdoctor.observe.lineage.origins import LOW
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.sums import elementwise
from precdoctor.observe.sums.book import Book
from precdoctor.observe.sums.elementwise import KINDS, SCATTERS, Call
from precdoctor.observe.sums.rows import NO_SLOPE, Rows
from precdoctor.observe.sums.values import Value
from precdoctor.observe.watch import is_plain

#: operations that set a tensor to another value
_SETS = ("aten::zero_", "aten::fill_", "aten::_foreach_zero_")
#: operations that bring nothing new: after them an update is not complete
_SCALINGS = ("mul", "div", "neg", "clone", "to_copy", "clamp", "clamp_min", "clamp_max")
_NORMS = frozenset(
    f"aten::{name}"
    for name in ("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm")
)
#: elements of the input of a norm whose statistics are computed again, and of the target of a scatter
_MOST_NORMED, _MOST_SCATTERED = 1 << 22, 1 << 16


class AccumulationWatch:
    """Follows what is added to again and again; see the module's docstring."""

    def __init__(self, code: UserCode, lineage: Lineage) -> None:
        self.book = Book(code, lineage)
        self._values = self.book.values
        self._rows = Rows(self.book)
        #: what is about to be written: the call, the value before, the exact one after, and by how much it
        #: changes with the one before
        self._writes: list[tuple[Call, Value, Any, float]] = []
        self._was_backward = self._sums_gradients = False

    # ------------------------------------------------------------------ told by the probe

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Work out what an operation in place is about to make, exactly."""
        self._writes = []
        name = func._schema.name
        if name in _SETS:
            for tensor in tensors_in(args[:1]):
                self._set(tensor)
        elif name in SCATTERS:
            self._scatter(func, args, kwargs)
        kind = KINDS.get(name)
        if kind is None or not kind.in_place or not args:
            return
        backward = torch._C._current_graph_task_id() != -1
        if backward and kind.op != "add":
            return
        for call in elementwise.calls(kind, args, kwargs, None):
            if self._concerns(call, backward):
                self._prepare(call, backward)

    def persists(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Tell whether an operation writes into a sum: a metric may take more than is looked at of a step."""
        name = func._schema.name
        kind = KINDS.get(name)
        if not (name in SCATTERS or name in _SETS or (kind is not None and kind.in_place)):
            return False
        target = args[0] if args else None
        value = self._values.at(target) if isinstance(target, Tensor) else None
        return value is not None and value.slot is not None and value.slot.in_place

    def after(self, operation: Operation) -> None:
        """Follow what has been written, and what goes from one operation to the next."""
        book = self.book
        book.at_step(operation.step)
        writes, self._writes = self._writes, []
        for call, value, exact, slope in writes:
            self._written(operation, call, value, exact, slope)
        if operation.backward:
            self._was_backward = True
            self._sums_gradients |= bool(writes)
            return
        if self._was_backward:
            self._was_backward = False
            book.find_gradients()
        self._rows.settle()
        book.marks.note(operation)
        book.origins.note(operation)
        name = operation.name
        kind = KINDS.get(name)
        if kind is not None and not kind.in_place:
            for call in elementwise.calls(kind, operation.args, operation.kwargs, operation.out):
                self._refresh(call.operands)
                self._rows.made(operation, call)
        elif name in _NORMS:
            self._normed(operation)
        if self._sums_gradients:
            book.note_reading(operation)

    def step_begins(self, *_: Any) -> None:
        """Look at the sums of gradients, which are used now."""
        self.book.find_gradients()
        self.book.close_sums(sys._getframe())
        self._rows.settle()
        self._values.let_go()
        self.book.forget()

    def fall_asleep(self) -> None:
        """Let go of what only neighbouring operations have in common."""
        self._rows.settle()
        self.book.fall_asleep()

    # ------------------------------------------------------------------ in place

    def _concerns(self, call: Call, backward: bool) -> bool:
        target = call.out
        low = target.dtype in LOW or (target.numel() == 1 and target.dtype == torch.float32)
        if not low or not target.numel() or not is_plain(target):
            return False
        return backward or not (target.requires_grad and torch.is_grad_enabled() and target.numel() > 1)

    def _prepare(self, call: Call, backward: bool) -> None:
        target = call.out
        if call.op == "copy":
            self._prepare_copy(call)
            return
        value = self._current(target, backward)
        self._refresh(call.operands[1:])
        samples = [value.exact, *(self._values.exact(v, target.shape) for v in call.operands[1:])]
        slopes = elementwise.slopes(call.op, samples, call.factor)
        slope = slopes[0]
        for operand, each in zip(call.operands[1:], slopes[1:], strict=True):
            other = self._values.at(operand) if isinstance(operand, Tensor) else None
            if other is value:
                slope += each  # p.add_(p, alpha=-decay)
            elif other is not None and value in other.terms:
                slope += each * other.terms[value]
        self._writes.append((call, value, self._values.exactly(call, samples), slope))

    def _prepare_copy(self, call: Call) -> None:
        """Look at a value that is copied over another: an update where the old one went into it."""
        target, operand = call.out, call.operands[0]
        source = self._values.at(operand) if isinstance(operand, Tensor) else None
        old = self._values.at(target)
        if source is not None and source is old:
            return
        if source is None or operand.shape != target.shape:
            self._set(target)
        elif old is None or abs(source.terms.get(old, 0.0)) < NO_SLOPE:
            self._set(target)
            self._writes.append((call, source, source.exact, 0.0))
        else:
            value = self._current(target, backward=False)
            self._writes.append((call, value, source.exact, source.terms.get(value, source.terms[old])))

    def _current(self, target: Tensor, backward: bool) -> Value:
        """Return the value of a tensor as it is now."""
        now = self._values.sample(target)
        value = self._values.at(target)
        if value is None:
            return self._values.enter(target, now, now)
        slot = value.slot
        if slot is None or not slot.in_place:
            value.exact = value.actual = now
            return value
        if slot.period == self.book.period or backward:
            # asking an accelerator would wait for it; there only what sets a value is taken note of
            if not slot.overwritten and (now.device.type != "cpu" or torch.equal(now, slot.last)):
                return value
            slot.begin_anew(now)
        else:
            slot.catch_up(now, slot.last_step, self.book.followed(slot))
        slot.period, slot.overwritten = self.book.period, False
        value.exact = value.actual = now
        return value

    def _refresh(self, operands: tuple[Any, ...]) -> None:
        """Bring what is known of slots among operands up to date."""
        for operand in operands:
            value = self._values.at(operand) if isinstance(operand, Tensor) else None
            if value is not None and value.slot is not None and value.slot.in_place:
                self._current(operand, backward=False)

    def _set(self, tensor: Tensor) -> None:
        """Take note that a tensor is about to be set to another value."""
        value = self._values.at(tensor)
        if value is not None and value.slot is not None:
            value.slot.overwritten = True

    def _scatter(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Work out additions to elements by their index."""
        target = args[0]
        if target.dtype not in LOW or not 0 < target.numel() <= _MOST_SCATTERED or not is_plain(target):
            return
        exact = elementwise.scattered(func, args, kwargs)
        if exact is not None:
            value = self._current(target, backward=False)
            call = Call("scatter", True, args, 1.0, target)
            self._writes.append((call, value, self._values.sample(exact), 1.0))

    def _written(self, operation: Operation, call: Call, value: Value, exact: Any, slope: float) -> None:
        target, book = call.out, self.book
        actual = self._values.sample(target)
        if slope == 0.0:  # a value with its history, copied to another place
            copied = self._values.enter(target, exact, actual, written=True)
            copied.take({value: 1.0})
            copied.key = ("copied",)
            return
        slot = value.slot
        if slot is None or not slot.in_place or slot not in book:
            slot = book.open(operation, call, target, value.actual, in_place=True)
            if slot is None:
                return
        slot.trained |= book.is_weight(target)
        # a hook of the program's own keeps the sum; the engine's are known by the parameter that gets them
        slot.gradient |= operation.backward and function_of_engine(operation.frame) is not None
        scaling = self._rows.instruction(operation.frame) if call.op in ("mul", "div") else None
        # scaled once more by the same instruction, and nothing added in between: it decays
        commit = call.op not in _SCALINGS or (scaling is not None and scaling == slot.scaled_by)
        slot.scaled_by = scaling
        if commit:
            book.note_sources(slot, value, call.operands[0 if call.op == "copy" else 1 :])
            slot.merges |= book.persists(value, operation.step)
        slot.write(exact, actual, slope, commit=commit)
        book.update(slot, book.site(operation, call) if commit else None, operation.step)
        value.slot = slot
        self._values.enter(target, slot.pending, actual).slot = slot

    # ------------------------------------------------------------------ running statistics

    def _normed(self, operation: Operation) -> None:
        """Follow the running statistics of a batch norm, which it writes itself."""
        x, _, _, mean, var, training, momentum = operation.args[:7]
        if not training or not isinstance(mean, Tensor) or not isinstance(var, Tensor):
            return
        if mean.dtype not in LOW or not is_plain(mean) or not is_plain(var) or x.numel() > _MOST_NORMED:
            return
        dims, count = [d for d in range(x.ndim) if d != 1], x.numel() // x.shape[1]
        wide = x.detach().double()
        batch = (wide.mean(dims), wide.var(dims, correction=0) * count / max(count - 1, 1))
        for target, statistic in zip((mean, var), batch, strict=True):
            now, value = self._values.sample(target), self._values.at(target)
            slot = value.slot if value is not None else None
            if slot is None or slot not in self.book:
                call = Call("lerp", True, (target, statistic), momentum, target)
                slot = self.book.open(operation, call, target, now, in_place=True)
                if slot is None:
                    return
                slot.tensor = None  # a norm does not count its writes
                slot.blind += 1
                slot.note_averaged(self._values.sample(statistic))
            elif slot.period == self.book.period:
                exact = slot.pending + momentum * (self._values.sample(statistic) - slot.pending)
                slot.write(exact, now, 1.0 - momentum, commit=True)
            else:  # what it was before this one is not known
                slot.blind += 1
                slot.note_averaged(self._values.sample(statistic))
                slot.catch_up(now, operation.step, None)
                slot.period, slot.overwritten = self.book.period, False
            self.book.update(slot, None, operation.step)
            self._values.enter(target, now, now).slot = slot
