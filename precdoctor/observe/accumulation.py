"""Sums, averages and counters that a run keeps in a low format, beside what exact arithmetic makes of them.

An instrument of the operation probe. What is added to again and again is found by what is done to it: it
is written in place, or what an instruction makes goes into the same one the next time. Elementwise operations
are done again in float64 on samples, from the stored values on, so that the rounding of a sum is told
apart from that of what is added to it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from precdoctor.evidence import Accumulation, Place
from precdoctor.observe import elementwise
from precdoctor.observe.accumulated import accumulations
from precdoctor.observe.elementwise import KINDS, SCATTERS, Call
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.lineage import Lineage
from precdoctor.observe.made import Made, Root, storage_key
from precdoctor.observe.models import Models
from precdoctor.observe.operations import Operation, tensors_in
from precdoctor.observe.origins import LOW, Marks, Origins
from precdoctor.observe.sites import Site
from precdoctor.observe.slots import Slot, version_of
from precdoctor.observe.values import Value, Values
from precdoctor.observe.watch import is_plain

#: operations that set a tensor to another value
_SETS = ("aten::zero_", "aten::fill_", "aten::_foreach_zero_")
#: operations that bring nothing new: after them an update is not complete
_SCALINGS = ("mul", "div", "neg", "clone", "to_copy")
_NORMS = frozenset(
    f"aten::{name}"
    for name in ("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm")
)
#: elements of the input of a norm whose statistics are computed again, and of the target of a scatter
_MOST_NORMED, _MOST_SCATTERED = 1 << 22, 1 << 16
#: slope below which an old value has cancelled out of the new one
_NO_SLOPE = 1e-9
#: tensors that are followed
_MOST_SLOTS = 2048
#: share of what an average forgets after which it is read again while the probe sleeps
_READ_SHARE = 0.05
#: share of the steps made after which sums and averages are read again
_READ_EVERY = 0.02
#: elements up to which a sum is read while the probe sleeps
_MOST_READ = 64


class AccumulationWatch:
    """Follows what is added to again and again; see the module's docstring."""

    def __init__(self, code: UserCode, lineage: Lineage) -> None:
        self._code, self._lineage = code, lineage
        self.origins, self.marks = Origins(code), Marks(lineage)
        self._values = Values()
        self._sites: dict[tuple[Any, ...], Site] = {}
        #: what is followed, with the line that adds to it
        self._homes: dict[Slot, Site] = {}
        #: what is about to be written: the call, the value before, the exact one after, and how it
        #: depends on it
        self._writes: list[tuple[Call, Value, Any, float]] = []
        #: results that replace a weight if they live longer than it, with that weight
        self._merges: list[tuple[Slot, Value]] = []
        #: which operand of an instruction is the old value, where it is one itself
        self._adders: dict[tuple[Any, ...], int] = {}
        self._was_backward = self._awake = self._sums_gradients = False
        #: waking periods of the probe, the step at hand, and the number of steps in which it was awake
        self._period, self._step, self._awake_steps = 0, -1, 0
        #: optimizer steps made, as far as it was told, and that of the next reading
        self._steps = self._next_read = 0
        #: names of the parameters whose gradients are summed
        self._names: dict[Root, str] = {}

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

    def after(self, operation: Operation) -> None:
        """Follow what has been written, and what goes from one operation to the next."""
        self._awake = True
        if operation.step != self._step:
            self._step = operation.step
            self._awake_steps += 1
        writes, self._writes = self._writes, []
        for call, value, exact, slope in writes:
            self._written(operation, call, value, exact, slope)
        if operation.backward:
            self._was_backward = True
            self._sums_gradients |= bool(writes)
            return
        if self._was_backward:
            self._was_backward = False
            self._find_gradients()
        if self._merges:
            self._settle_merges()
        self.marks.note(operation)
        self.origins.note(operation)
        name = operation.name
        kind = KINDS.get(name)
        if kind is not None and not kind.in_place:
            for call in elementwise.calls(kind, operation.args, operation.kwargs, operation.out):
                self._made(operation, call)
        elif name in _NORMS:
            self._normed(operation)
        if self._sums_gradients:
            self._taken_up(operation)

    def step_begins(self, _: torch.optim.Optimizer, __: int) -> None:
        """Look at the sums of gradients, which are used now."""
        self._find_gradients()
        for slot, site in self._homes.items():
            if (site.backward or slot.gradient) and slot.fresh:
                slot.close_sum()
                site.read_at = site.read_at or self._code.innermost(sys._getframe())[0]
        self._values.let_go()
        self._forget()

    def fall_asleep(self) -> None:
        """Let go of what only neighbouring operations have in common."""
        self._values.fall_asleep()
        self._forget(everything=True)
        for slot in self._homes:
            slot.fall_asleep()
        self._awake = False
        self._period += 1

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
        values = [value.exact, *(self._values.exact(v, target.shape) for v in call.operands[1:])]
        slopes = elementwise.slopes(call.op, values, call.factor)
        slope = slopes[0]
        for operand, each in zip(call.operands[1:], slopes[1:], strict=True):
            other = self._values.at(operand) if isinstance(operand, Tensor) else None
            if other is not None and value in other.terms:
                slope += each * other.terms[value]
        self._writes.append((call, value, self._exactly(call, values), slope))

    def _prepare_copy(self, call: Call) -> None:
        """Look at a value that is copied over another: an update where the old one went into it."""
        target, operand = call.out, call.operands[0]
        source = self._values.at(operand) if isinstance(operand, Tensor) else None
        old = self._values.at(target)
        if source is not None and source is old:
            return
        if source is None or operand.shape != target.shape:
            self._set(target)
        elif old is None or abs(source.terms.get(old, 0.0)) < _NO_SLOPE:
            self._set(target)
            self._writes.append((call, source, source.exact, 0.0))
        else:
            value = self._current(target, backward=False)
            self._writes.append((call, value, source.exact, source.terms.get(value, source.terms[old])))

    def _current(self, target: Tensor, backward: bool) -> Value:
        """Return the value of a tensor that is about to be written, as it is now."""
        now = self._values.sample(target)
        value = self._values.at(target)
        if value is None:
            return self._values.enter(target, now, now)
        slot = value.slot
        if slot is None or not slot.in_place:
            value.exact = value.actual = now
            return value
        if slot.period == self._period or backward:
            # asking an accelerator would wait for it; there only what sets a value is taken note of
            if not slot.overwritten and (now.device.type != "cpu" or torch.equal(now, slot.last)):
                return value
            slot.begin_anew(now)
        else:
            slot.catch_up(now, slot.last_step, self._followed(slot))
        slot.period, slot.overwritten = self._period, False
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
            self._writes.append(
                (Call("scatter", True, args, 1.0, target), value, self._values.sample(exact), 1.0)
            )

    def _written(self, operation: Operation, call: Call, value: Value, exact: Any, slope: float) -> None:
        target = call.out
        actual = self._values.sample(target)
        if slope == 0.0:  # a value with its history, copied to another place
            copied = self._values.enter(target, exact, actual, written=True)
            copied.take({value: 1.0})
            copied.key = ("copied",)
            return
        slot = value.slot
        if slot is None or not slot.in_place:
            slot = self._slot(operation, call, target, value.actual, in_place=True)
            if slot is None:
                return
        commit = call.op not in _SCALINGS
        operands = call.operands[0 if call.op == "copy" else 1 :]
        if commit:
            self._homes[slot] = site = self._site(operation, call)
            site.note_step(operation.step)
            self._note_sources(slot, value, operands)
            slot.merges |= self._persists(value, operation.step)
        slot.write(exact, actual, slope, commit=commit, step=operation.step)
        slot.period, slot.awake = self._period, self._awake_steps
        value.slot = slot
        self._values.enter(target, slot.pending, actual).slot = slot

    # ------------------------------------------------------------------ out of place

    def _made(self, operation: Operation, call: Call) -> None:
        out = call.out
        tensors = [t for t in call.operands if isinstance(t, Tensor)]
        if not out.is_floating_point() or out.dtype == torch.float64 or not out.numel() or not is_plain(out):
            return
        single = out.numel() == 1
        if operation.graded and not single and any(t.requires_grad for t in tensors):
            return
        self._refresh(call.operands)
        known = {i: v for i, t in enumerate(call.operands) if (v := self._operand(t, out)) is not None}
        if not (known or single or out.dtype in LOW or any(t.dtype in LOW for t in tensors)):
            return
        values = [self._values.exact(v, out.shape) for v in call.operands]
        for index, (tensor, value) in enumerate(zip(call.operands, values, strict=True)):
            low = isinstance(tensor, Tensor) and (tensor.dtype in LOW or single) and is_plain(tensor)
            if low and tensor.shape == out.shape and index not in known:
                known[index] = self._values.enter(tensor, value, value)
        slopes = elementwise.slopes(call.op, values, call.factor)
        entry = self._values.enter(out, self._exactly(call, values), self._values.sample(out))
        for index, source in known.items():
            entry.take({source: slopes[index]})
        entry.key = (*self._instruction(operation.frame), call.op)
        entry.merged = any(v.merged for v in known.values()) or any(map(self._is_trained, tensors))
        if (out.dtype in LOW or single) and not self._link(operation, call, entry, known) and entry.merged:
            self._merge(operation, call, entry)

    def _operand(self, operand: Any, out: Tensor) -> Value | None:
        return (
            self._values.at(operand) if isinstance(operand, Tensor) and operand.shape == out.shape else None
        )

    def _link(self, operation: Operation, call: Call, entry: Value, known: dict[int, Value]) -> bool:
        """Recognise a value whose old one was made by the same instruction; return whether it was."""
        assert entry.key is not None
        same = (entry.dtype, entry.layout[0])
        made = [
            v
            for v, slope in entry.terms.items()
            if v.key == entry.key and (v.dtype, v.layout[0]) == same and not slope <= _NO_SLOPE
        ]
        if not made:  # the probe has slept since, or it is the first time
            first = known.get(self._adders.get(entry.key, -1))
            made = [first] if first is not None and first.dtype == entry.dtype else []
        if not made:
            return False
        previous = made[0]
        slope, slot = entry.terms.get(previous, 1.0), previous.slot
        if slot is None or slot.in_place or slot not in self._homes:
            slot = self._slot(operation, call, call.out, previous.actual, in_place=False)
            if slot is None:
                return True
        index = next((i for i, v in known.items() if v is previous), None)
        if index is not None:
            self._adders[entry.key] = index
        self._homes[slot].note_step(operation.step)
        self._note_sources(slot, previous, tuple(v for i, v in enumerate(call.operands) if i != index))
        slot.write(entry.exact, entry.actual, slope, commit=True, step=operation.step)
        slot.awake = self._awake_steps
        slot.moved_to(call.out)
        previous.slot = entry.slot = slot
        entry.exact, entry.terms, entry.merged = entry.actual, {}, False
        return True

    # ------------------------------------------------------------------ merges

    def _merge(self, operation: Operation, call: Call, entry: Value) -> None:
        """Follow trained weights that are added to a tensor of the same format, which may be a weight."""
        out = call.out
        for base, slope in entry.terms.items():
            alike = base.dtype == out.dtype and base.layout[0] == out.shape and base.key is None
            if slope == 1.0 and alike and out.numel() > 1 and self._persists(base, operation.step):
                slot = self._slot(operation, call, out, base.actual, in_place=False)
                if slot is not None:
                    slot.weights = slot.merges = True
                    slot.origin = self.origins.at(base.memory.key) or slot.origin
                    slot.write(entry.exact, entry.actual, 1.0, commit=True, step=operation.step)
                    self._merges.append((slot, base))
                return

    def _settle_merges(self) -> None:
        """Keep the results that have taken the place of the weights that they were made of."""
        waiting = []
        for slot, base in self._merges:
            if slot.memory.gone:
                self._homes.pop(slot, None)
            elif not base.memory.gone:
                waiting.append((slot, base))
        self._merges = waiting

    def _persists(self, value: Value, step: int) -> bool:
        """Tell whether a tensor was there before this step: a weight, and no activation."""
        origin = self.origins.at(value.memory.key)
        return origin is None or origin.step < step

    def _is_trained(self, tensor: Tensor) -> bool:
        return tensor.is_floating_point() and is_plain(tensor) and self.marks.is_weights(tensor)

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
            if slot is None:
                call = Call("lerp", True, (target, statistic), momentum, target)
                slot = self._slot(operation, call, target, now, in_place=True)
                if slot is None:
                    return
            elif slot.period == self._period:
                exact = slot.pending + momentum * (self._values.sample(statistic) - slot.pending)
                slot.write(exact, now, 1.0 - momentum, commit=True, step=operation.step)
            else:
                slot.begin_anew(now)
            slot.period, slot.awake, slot.last_step = self._period, self._awake_steps, operation.step
            self._homes[slot].note_step(operation.step)
            self._values.enter(target, now, now).slot = slot

    # ------------------------------------------------------------------ look-ups

    def _exactly(self, call: Call, values: list[Any]) -> Any:
        factor = call.factor
        if isinstance(factor, Tensor):
            factor = self._values.sampler(factor, call.out.shape)
        return elementwise.exact(call.op, values, factor)

    def _instruction(self, frame: FrameType | None) -> tuple[Any, ...]:
        """Return what tells the call that runs an operation from others on its line."""
        user = frame
        while user is not None and not self._code.is_user(user.f_code.co_filename):
            user = user.f_back
        found = (f for f in (frame, user) if f is not None)
        return tuple(part for f in found for part in (f.f_code, f.f_lasti))

    def _site(self, operation: Operation, call: Call) -> Site:
        spot = self._code.innermost(operation.frame)[0]
        key = (spot, call.op, call.out.dtype, operation.backward, call.out.numel() == 1)
        if key not in self._sites:
            self._sites[key] = Site(spot=spot, dtype=call.out.dtype, backward=operation.backward)
        return self._sites[key]

    def _slot(
        self, operation: Operation, call: Call, tensor: Tensor, now: Tensor, *, in_place: bool
    ) -> Slot | None:
        if len(self._homes) >= _MOST_SLOTS:
            self._forget(everything=True)
        if len(self._homes) >= _MOST_SLOTS:
            return None
        site = self._site(operation, call)
        site.note_step(operation.step)
        slot = Slot.of(tensor, now, in_place=in_place, step=operation.step, period=self._period)
        slot.awake = slot.first_awake = self._awake_steps
        slot.origin = self.origins.of(tensor)
        self._homes[slot] = site
        if not in_place:
            if site.head is not None and site.head.memory.gone and tensor.numel() == 1:
                slot.continues(site.head, operation.step)
            site.head = slot
        return slot

    def _note_sources(self, slot: Slot, old: Value, operands: tuple[Any, ...]) -> None:
        """Note what is added to a slot: gradients, trained weights, the parameter that it follows."""
        for operand in operands:
            if not isinstance(operand, Tensor) or not is_plain(operand):
                continue
            known = self._values.at(operand)
            if known is not None:  # what was lost before is added again
                slot.compensated |= any(v.slot is slot and v is not old for v in known.terms)
            slot.gradient |= self.marks.is_gradient(operand)
            slot.weights |= self.marks.is_weights(operand)
            made = self._lineage.made(operand)
            roots = (made,) if isinstance(made, Root) else tuple(made.roots) if isinstance(made, Made) else ()
            if len(roots) == 1 and roots[0].shape == slot.size and roots[0].memory.key != slot.memory.key:
                slot.source = roots[0]

    def _find_gradients(self) -> None:
        self.marks.find_gradients()
        for slot, site in self._homes.items():
            if site.backward and slot.source is None and not slot.memory.gone:
                slot.source = self.marks.owner(slot.memory.key)

    def _taken_up(self, operation: Operation) -> None:
        """Note where the sum of gradients is read."""
        for tensor in operation.inputs:
            value = self._values.at(tensor)
            if value is not None and value.slot is not None and value.slot.fresh:
                site = self._homes.get(value.slot)
                if site is not None and site.backward and site.read_at is None:
                    site.read_at = self._code.innermost(operation.frame)[0]

    def _followed(self, slot: Slot) -> Tensor | None:
        """Return a sample of the parameter that a slot follows."""
        parameter = slot.source.alive() if slot.source is not None else None
        return self._values.sample(parameter) if parameter is not None else None

    def _forget(self, *, everything: bool = False) -> None:
        """Let go of what is gone; rows of tensors are gone when they have not gone on for a step."""
        self._settle_merges()
        self.marks.forget()
        self.origins.forget()
        for site in self._homes.values():
            site.held = 0
        for slot, site in list(self._homes.items()):
            site.held += 1
            if slot.memory.gone and (slot.in_place or everything or slot.last_step + 1 < self._step):
                del self._homes[slot]
                site.absorb(slot, max(self._step, self._steps))
        for site in self._sites.values():
            site.most = max(site.most, site.held)

    # ------------------------------------------------------------------ while the probe sleeps

    def reads_at(self, step: int) -> bool:
        """Tell whether `read` has something to look at after ``step`` steps."""
        self._steps = max(step, self._steps)
        return not self._awake and step >= self._next_read and bool(self._homes)

    def read(self, step: int) -> None:
        """Look at sums and averages as they are now, ever more rarely."""
        self._next_read = step + max(1, int(step * _READ_EVERY))
        for slot, site in self._homes.items():
            if slot.in_place and not site.backward and not slot.memory.gone:
                self._read(slot, step)

    def _read(self, slot: Slot, step: int) -> None:
        decay, source = slot.decay, None
        if decay is not None and 0 < decay < 1:
            passed = slot.passed()
            due = passed if passed else (step - slot.last_step) * slot.per_step
            if due * (1 - decay) < _READ_SHARE:
                return
            source = self._followed(slot)
        elif slot.base.numel() > _MOST_READ:
            return
        tensor = slot.alive()
        if tensor is not None:
            slot.catch_up(self._values.sample(tensor), step, source)

    # ------------------------------------------------------------------ afterwards

    def look(self, models: Models) -> None:
        """Note the names of what is added to while it lives."""
        buffers = models.buffer_names() if self._homes else {}
        own = {storage_key(p): (p, owner.name) for p, owner in models.parameters()} if self._homes else {}
        for slot in self._homes:
            key = slot.memory.key
            parameter, name = own.get(key, (None, buffers.get(key, "")))
            slot.name = name or slot.name
            if parameter is not None and slot.in_place and (slot.tensor is None or slot.tensor() is None):
                slot.tensor, slot.version = weakref.ref(parameter), version_of(parameter)
        ended = [e for site in self._sites.values() for e in site.ended]
        owners = {e.owner for e in ended if e.sums} | {s.source for s in self._homes if s.sums}
        for root in owners - {None}:
            assert root is not None
            parameter = root.alive()
            owner = models.owner(parameter) if parameter is not None else None
            if owner is not None:
                self._names[root] = owner.name

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[Accumulation, ...]:
        """Return what was seen, in the order of first sight."""
        slots: dict[Site, list[Slot]] = {}
        for slot, site in self._homes.items():
            slots.setdefault(site, []).append(slot)
        found = []
        for site in self._sites.values():
            found += accumulations(site, slots.get(site, []), self._names, place, self._steps)
        return tuple(found)
