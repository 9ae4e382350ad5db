"""A site: a line of the run that adds to tensors, with what has become of those that are gone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from precdoctor.evidence.accumulations import AccumulationKind
from precdoctor.observe.frames import Spot
from precdoctor.observe.lineage.made import Root
from precdoctor.observe.lineage.origins import Origin
from precdoctor.observe.sums.slots import Slot, worse

#: tensors that are gone whose numbers are kept apart, of one site
_MOST_APART = 256


@dataclass(slots=True)
class Ended:
    """The numbers of a slot, or of several together; see `Slot`."""

    kind: AccumulationKind
    compensated: bool
    totals: Tensor
    #: elements that were meant to change, and those of them that never did
    still: Tensor
    state: Tensor | None
    way: Tensor | None
    #: errors of sums of gradients, and the parameter whose gradients they are of
    sums: list[Tensor]
    owner: Root | None
    name: str
    numel: int
    log_decay: float
    decays: int
    only_scaled: Tensor
    never_negative: Tensor
    gradient: bool
    trained: bool
    commits: int
    origin: Origin | None
    #: what was added to the largest element at the last updates
    increments: list[Tensor]

    @classmethod
    def of(cls, slot: Slot, step: int) -> Ended:
        """Return the numbers of a slot as it is, or must be, after ``step`` steps."""
        state = slot.after(step) if slot.recent else None
        if state is not None and slot.worst is not None:
            state = worse(state, slot.worst)
        return cls(
            kind=slot.kind,
            compensated=slot.compensated,
            totals=slot.totals,
            still=torch.stack((slot.driven.double().sum(), (slot.driven & ~slot.moved).double().sum())),
            state=state,
            way=slot.way(),
            sums=list(slot.sums),
            owner=slot.source,
            name=slot.name,
            numel=math.prod(slot.size),
            log_decay=slot.log_decay,
            decays=slot.decays,
            only_scaled=slot.only_scaled,
            never_negative=slot.never_negative,
            gradient=slot.gradient,
            trained=slot.trained,
            commits=slot.commits,
            origin=slot.origin,
            increments=[row[1] for row in slot.recent],
        )

    def merge(self, other: Ended) -> None:
        """Add the numbers of another."""
        self.totals, self.still = self.totals + other.totals, self.still + other.still
        if self.state is None or other.state is None:
            self.state = self.state if other.state is None else other.state
        else:
            self.state = worse(self.state, other.state)
        if self.way is None or other.way is None:
            self.way = self.way if other.way is None else other.way
        else:
            self.way = self.way + other.way
        self.numel = max(self.numel, other.numel)
        self.log_decay += other.log_decay
        self.decays += other.decays
        self.only_scaled = self.only_scaled & other.only_scaled
        self.never_negative = self.never_negative & other.never_negative
        self.gradient |= other.gradient
        self.trained &= other.trained
        self.commits += other.commits
        self.origin = self.origin or other.origin
        self.increments = [*self.increments, *other.increments][-_MOST_APART:]


@dataclass(slots=True, eq=False)
class Site:
    """A line of the run that adds to tensors of one format."""

    spot: Spot | None
    dtype: torch.dtype
    #: inside a backward pass
    backward: bool
    #: the largest number of tensors at a time
    most: int = 0
    held: int = 0
    ended: list[Ended] = field(default_factory=list)
    #: optimizer steps of which it was seen in the first and the last
    first_step: int = -1
    last_step: int = -1
    #: where sums of gradients were taken up
    read_at: Spot | None = None
    #: the slot last seen of those that are a new tensor each time
    head: Slot | None = None

    def note_step(self, step: int) -> None:
        """Take note that it is seen in a step."""
        self.first_step = step if self.first_step < 0 else self.first_step
        self.last_step = max(step, self.last_step)

    def absorb(self, slot: Slot, step: int) -> None:
        """Keep the numbers of a slot that is let go of after ``step`` steps."""
        ended = self.final(slot, step)
        if ended is None:
            return
        alike = [e for e in self.ended if (e.kind, e.compensated) == (ended.kind, ended.compensated)]
        if len(self.ended) >= _MOST_APART and alike and not ended.sums:
            alike[-1].merge(ended)
        else:
            self.ended.append(ended)

    def final(self, slot: Slot, step: int) -> Ended | None:
        """Return the numbers of a slot; None for the gradient of a value that is used twice."""
        if self.backward and slot.source is None and not slot.gradient:
            return None
        slot.gradient |= self.backward
        if slot.gradient:
            slot.close_sum()
        return Ended.of(slot, step)
