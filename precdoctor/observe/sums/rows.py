"""Rows of tensors: sums and averages whose every value is a new tensor, and merges that replace a weight."""

from __future__ import annotations

from types import FrameType
from typing import Any

import torch
from torch import Tensor

from precdoctor.observe.lineage.origins import LOW
from precdoctor.observe.probe.operations import Operation
from precdoctor.observe.sums import elementwise
from precdoctor.observe.sums.book import Book
from precdoctor.observe.sums.elementwise import Call
from precdoctor.observe.sums.slots import Slot
from precdoctor.observe.sums.values import Value
from precdoctor.observe.watch import is_plain

#: slope below which an old value has cancelled out of the new one
NO_SLOPE = 1e-9


class Rows:
    """Follows values from one elementwise operation to the next, and knows one that comes back."""

    def __init__(self, book: Book) -> None:
        self._book = book
        #: which operand of an instruction is the old value, where it is one itself
        self._adders: dict[tuple[Any, ...], int] = {}
        #: results that replace a weight if they live longer than it, with that weight
        self._merges: list[tuple[Slot, Value]] = []

    def made(self, operation: Operation, call: Call) -> None:
        """Follow the result of an operation; the operands that are slots are known as they are now."""
        out, values = call.out, self._book.values
        tensors = [t for t in call.operands if isinstance(t, Tensor)]
        if not out.is_floating_point() or out.dtype == torch.float64 or not out.numel() or not is_plain(out):
            return
        single = out.numel() == 1
        graded = [t for t in tensors if t.requires_grad] if operation.graded and not single else []
        if graded and not (len(graded) == 1 and self._book.is_weight(graded[0])):
            return  # an activation
        known = {i: v for i, t in enumerate(call.operands) if (v := self._at(t, out)) is not None}
        if not (known or single or out.dtype in LOW or any(t.dtype in LOW for t in tensors)):
            return
        samples = [values.exact(v, out.shape) for v in call.operands]
        for index, (tensor, sample) in enumerate(zip(call.operands, samples, strict=True)):
            low = isinstance(tensor, Tensor) and (tensor.dtype in LOW or single) and is_plain(tensor)
            if low and tensor.shape == out.shape and index not in known:
                known[index] = values.enter(tensor, sample, sample)
        slopes = elementwise.slopes(call.op, samples, call.factor)
        entry = values.enter(out, values.exactly(call, samples), values.sample(out))
        for index, source in known.items():
            entry.take({source: slopes[index]})
        entry.key = (*self.instruction(operation.frame), call.op)
        entry.merged = any(v.merged for v in known.values()) or any(map(self._is_trained, tensors))
        if (out.dtype in LOW or single) and not self._link(operation, call, entry, known) and entry.merged:
            self._merge(operation, call, entry)

    def settle(self) -> None:
        """Keep the results that have taken the place of the weights that they were made of."""
        waiting = []
        for slot, base in self._merges:
            if slot.memory.gone:
                self._book.drop(slot)
            elif not base.memory.gone:
                waiting.append((slot, base))
        self._merges = waiting

    def _at(self, operand: Any, out: Tensor) -> Value | None:
        same = isinstance(operand, Tensor) and operand.shape == out.shape
        return self._book.values.at(operand) if same else None

    def _is_trained(self, tensor: Tensor) -> bool:
        return tensor.is_floating_point() and is_plain(tensor) and self._book.marks.is_weights(tensor)

    def instruction(self, frame: FrameType | None) -> tuple[Any, ...]:
        """Return what tells the call that runs an operation from others on its line."""
        user = frame
        while user is not None and not self._book.code.is_user(user.f_code.co_filename):
            user = user.f_back
        found = (f for f in (frame, user) if f is not None)
        return tuple(part for f in found for part in (f.f_code, f.f_lasti))

    def _link(self, operation: Operation, call: Call, entry: Value, known: dict[int, Value]) -> bool:
        """Recognise a value whose old one was made by the same instruction; return whether it was."""
        assert entry.key is not None
        same = (entry.dtype, entry.layout[0])
        made = [
            v
            for v, slope in entry.terms.items()
            if v.key == entry.key and (v.dtype, v.layout[0]) == same and not slope <= NO_SLOPE
        ]
        if not made:  # the probe has slept since, or it is the first time
            first = known.get(self._adders.get(entry.key, -1))
            made = [first] if first is not None and first.dtype == entry.dtype else []
        if not made:
            return False
        previous, book = made[0], self._book
        slope, slot = entry.terms.get(previous, 1.0), previous.slot
        if slot is None or slot.in_place or slot not in book:
            slot = book.open(operation, call, call.out, previous.actual, in_place=False)
            if slot is None:
                return True
        index = next((i for i, v in known.items() if v is previous or previous in v.terms), None)
        if index is not None:
            self._adders[entry.key] = index
            slot.trained |= self._book.is_weight(call.operands[index])
        book.note_sources(slot, previous, tuple(v for i, v in enumerate(call.operands) if i != index))
        slot.gradient |= book.marks.is_gradient(call.out)  # added by an operation before this one
        slot.write(entry.exact, entry.actual, slope, commit=True)
        book.update(slot, None, operation.step)
        slot.moved_to(call.out)
        previous.slot = entry.slot = slot
        entry.exact, entry.terms, entry.merged = entry.actual, {}, False
        return True

    def _merge(self, operation: Operation, call: Call, entry: Value) -> None:
        """Follow trained weights that are added to a tensor of the same format, which may be a weight."""
        out, book = call.out, self._book
        for base, slope in entry.terms.items():
            alike = base.dtype == out.dtype and base.layout[0] == out.shape and base.key is None
            if slope == 1.0 and alike and out.numel() > 1 and book.persists(base, operation.step):
                slot = book.open(operation, call, out, base.actual, in_place=False)
                if slot is not None:
                    slot.weights = slot.merges = True
                    slot.origin = book.origins.at(base.memory.key) or slot.origin
                    slot.write(entry.exact, entry.actual, 1.0, commit=True)
                    self._merges.append((slot, base))
                return
