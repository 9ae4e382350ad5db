"""The book of slots: what is added to again and again, by the line that adds to it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from precdoctor.evidence import Accumulation, Place
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.lineage.lineage import Lineage
from precdoctor.observe.lineage.made import Made, Root, storage_key
from precdoctor.observe.lineage.origins import Marks, Origins
from precdoctor.observe.models import Models
from precdoctor.observe.probe.operations import Operation
from precdoctor.observe.sums.accumulated import accumulations
from precdoctor.observe.sums.elementwise import Call
from precdoctor.observe.sums.sites import Site
from precdoctor.observe.sums.slots import Slot, version_of
from precdoctor.observe.sums.values import Value, Values
from precdoctor.observe.watch import is_plain

#: tensors that are followed
_MOST_SLOTS = 2048
#: share of what an average forgets after which it is read again while the probe sleeps
_READ_SHARE = 0.05
#: share of the steps made after which sums and averages are read again
_READ_EVERY = 0.02
#: elements up to which a sum is read while the probe sleeps
_MOST_READ = 64


class Book:
    """Slots and their sites, with where they come from and what goes into them."""

    def __init__(self, code: UserCode, lineage: Lineage) -> None:
        self.code, self._lineage = code, lineage
        self.origins, self.marks, self.values = Origins(code), Marks(lineage), Values()
        #: waking periods of the probe, and number of the step among those in which it was awake
        self.period = self.awake_steps = 0
        self.awake = False
        self._sites: dict[tuple[Any, ...], Site] = {}
        self._homes: dict[Slot, Site] = {}
        #: the step at hand, steps made as far as it was told, and that of the next reading
        self._step = -1
        self._steps = self._next_read = 0
        #: names of the parameters whose gradients are summed
        self._names: dict[Root, str] = {}

    def __iter__(self) -> Iterator[tuple[Slot, Site]]:
        return iter(self._homes.items())

    def __contains__(self, slot: Slot) -> bool:
        return slot in self._homes

    # ------------------------------------------------------------------ entries

    def at_step(self, step: int) -> None:
        """Take note of the step at hand."""
        self.awake = True
        if step != self._step:
            self._step = step
            self.awake_steps += 1

    def site(self, operation: Operation, call: Call) -> Site:
        """Return the site of an operation, made at first sight."""
        spot = self.code.innermost(operation.frame)[0]
        key = (spot, call.op, call.out.dtype, operation.backward, call.out.numel() == 1)
        if key not in self._sites:
            self._sites[key] = Site(spot=spot, dtype=call.out.dtype, backward=operation.backward)
        return self._sites[key]

    def open(
        self, operation: Operation, call: Call, tensor: Tensor, now: Tensor, *, in_place: bool
    ) -> Slot | None:
        """Return a new slot that holds ``now``; None where there are too many."""
        if len(self._homes) >= _MOST_SLOTS:
            self.forget(everything=True)
        if len(self._homes) >= _MOST_SLOTS:
            return None
        site = self.site(operation, call)
        site.note_step(operation.step)
        slot = Slot.of(tensor, now, in_place=in_place, step=operation.step, period=self.period)
        slot.awake = slot.first_awake = self.awake_steps
        slot.origin = self.origins.of(tensor)
        self._homes[slot] = site
        if not in_place:
            if site.head is not None and site.head.memory.gone and tensor.numel() == 1:
                slot.continues(site.head, operation.step)
            site.head = slot
        return slot

    def update(self, slot: Slot, site: Site | None, step: int) -> None:
        """Take note that a line has updated a slot; None: the same as before."""
        if site is not None:
            self._homes[slot] = site
        self._homes[slot].note_step(step)
        slot.period, slot.awake, slot.last_step = self.period, self.awake_steps, step

    def drop(self, slot: Slot) -> None:
        """Forget a slot: it was none."""
        self._homes.pop(slot, None)

    def is_weight(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is itself a trained weight."""
        if not is_plain(tensor):
            return False
        return isinstance(self._lineage.made(tensor), Root) or self.marks.is_functional(tensor)

    def note_sources(self, slot: Slot, old: Value, operands: tuple[Any, ...]) -> None:
        """Note what is added to a slot: gradients, trained weights, the parameter that it follows."""
        for operand in operands:
            if not isinstance(operand, Tensor) or not is_plain(operand):
                continue
            known = self.values.at(operand)
            if known is not None:  # what was lost before is added again
                slot.compensated |= any(v.slot is slot and v is not old for v in known.terms)
            slot.gradient |= self.marks.is_gradient(operand)
            slot.weights |= self.marks.is_weights(operand)
            made = self._lineage.made(operand)
            roots = (made,) if isinstance(made, Root) else tuple(made.roots) if isinstance(made, Made) else ()
            if len(roots) == 1 and roots[0].shape == slot.size and roots[0].memory.key != slot.memory.key:
                slot.source = roots[0]

    def persists(self, value: Value, step: int) -> bool:
        """Tell whether a tensor was there before this step: a weight, and no activation."""
        origin = self.origins.at(value.memory.key)
        return origin is None or origin.step < step

    # ------------------------------------------------------------------ gradients

    def find_gradients(self) -> None:
        """Look whose gradients are summed where; to be called after a backward pass."""
        self.marks.find_gradients()
        for slot, site in self._homes.items():
            if site.backward and slot.source is None and not slot.memory.gone:
                slot.source = self.marks.owner(slot.memory.key)

    def close_sums(self, frame: FrameType) -> None:
        """Take note that the sums of gradients are used, by a step that a frame inside of it tells."""
        for slot, site in self._homes.items():
            if (site.backward or slot.gradient) and slot.fresh:
                slot.close_sum()
                site.read_at = site.read_at or self.code.innermost(frame)[0]

    def note_reading(self, operation: Operation) -> None:
        """Note where the sum of gradients is read first."""
        for tensor in operation.inputs:
            value = self.values.at(tensor)
            if value is not None and value.slot is not None and value.slot.fresh:
                site = self._homes.get(value.slot)
                if site is not None and site.backward and site.read_at is None:
                    site.read_at = self.code.innermost(operation.frame)[0]

    # ------------------------------------------------------------------ what is gone

    def fall_asleep(self) -> None:
        """Let go of what only neighbouring operations have in common."""
        self.values.fall_asleep()
        self.forget(everything=True)
        for slot in self._homes:
            slot.fall_asleep()
        self.awake = False
        self.period += 1

    def forget(self, *, everything: bool = False) -> None:
        """Let go of what is gone; rows of tensors are gone when they have not gone on for a step."""
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

    def followed(self, slot: Slot) -> Tensor | None:
        """Return a sample of the parameter that a slot follows."""
        parameter = slot.source.alive() if slot.source is not None else None
        return self.values.sample(parameter) if parameter is not None else None

    def reads_at(self, step: int) -> bool:
        """Tell whether `read` has something to look at after ``step`` steps."""
        self._steps = max(step, self._steps)
        return not self.awake and step >= self._next_read and bool(self._homes)

    def read(self, step: int) -> None:
        """Look at sums and averages as they are now, ever more rarely."""
        self._next_read = step + max(1, int(step * _READ_EVERY))
        for slot, site in self._homes.items():
            if slot.in_place and not site.backward and not slot.memory.gone:
                self._read(slot, step)

    def _read(self, slot: Slot, step: int) -> None:
        decay, source = slot.decay, None
        if decay is not None and 0 < decay < 1:
            updates = slot.passed() or (step - slot.last_step) * slot.per_step
            if updates * (1 - decay) < _READ_SHARE:
                return
            source = self.followed(slot)
        elif slot.base.numel() > _MOST_READ:
            return
        tensor = slot.alive()
        if tensor is not None:
            slot.catch_up(self.values.sample(tensor), step, source)

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
        ended = (e.owner for site in self._sites.values() for e in site.ended if e.sums)
        for root in {*ended, *(slot.source for slot in self._homes if slot.sums)}:
            parameter = root.alive() if root is not None else None
            owner = models.owner(parameter) if parameter is not None else None
            if root is not None and owner is not None:
                self._names[root] = owner.name

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[Accumulation, ...]:
        """Return what was seen, in the order of first sight."""
        slots: dict[Site, list[Slot]] = {}
        for slot, site in self._homes.items():
            slots.setdefault(site, []).append(slot)
        found: list[Accumulation] = []
        with torch.no_grad():
            for site in self._sites.values():
                found += accumulations(site, slots.get(site, []), self._names, place, self._steps)
        return tuple(found)
