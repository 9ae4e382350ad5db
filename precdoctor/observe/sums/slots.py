"""A slot: one tensor that is added to again and again, beside what exact arithmetic would make of it.

All tensors here are float64 samples of its elements (`Sampler`); nothing is read off before the end, so
that an accelerator is not waited for.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from precdoctor.evidence.accumulations import AccumulationKind
from precdoctor.observe.lineage.made import Memory, Root
from precdoctor.observe.lineage.origins import Origin

#: updates whose numbers are kept one by one, those of them that are typical of now, and those that tell
#: whether it stands still
_RECENT, _WINDOW, _LAST = 32, 4, 2
#: what is averaged is known by the mean of what was seen of it, the last this many weighing most; from two
#: values on
_SEEN, _ENOUGH = 8, 2
#: rounding of float64, over the value, that a scaled one may be off by
_SCALED = 1e-12
#: sums of gradients whose error is kept, of one parameter
_MOST_SUMS = 64


@dataclass(slots=True, eq=False)
class Slot:
    """One tensor, or a row of tensors each made from the last."""

    memory: Memory
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    in_place: bool
    #: what it held when it was first seen, after the last update, and after the last write
    start: Tensor
    base: Tensor
    last: Tensor
    #: what exact arithmetic would have made of ``base`` since
    pending: Tensor
    #: exact arithmetic minus what is stored, since it has been followed
    error: Tensor
    #: what was to be added and was not, where nothing decays
    missing: Tensor
    #: sum of the squares of what was added, and whether it began with something
    added: Tensor
    begun: Tensor
    #: sums over elements and updates: see `Totals`
    totals: Tensor
    #: how far ``error`` may be off, since what was averaged while nobody looked is known by samples
    doubt: Tensor
    #: updates that changed nothing while nobody looked
    standing: Tensor
    #: no update brought anything new: each scaled the old value; none brought anything negative
    only_scaled: Tensor
    never_negative: Tensor
    #: elements that were meant to change, and those that did
    driven: Tensor
    moved: Tensor
    #: the tensor object, for its version counter; None where it is gone
    tensor: weakref.ref[Tensor] | None = None
    #: that counter when it was last looked at, and before the last update
    version: int = -1
    written: int = -1
    versions_per_commit: float = 1.0
    #: updates in all, and since the sum was last closed
    commits: int = 0
    fresh: int = 0
    #: updates before which the value was not looked at
    blind: int = 0
    #: what is left of the old value, since the last update; its logarithm over all updates, and their number
    slope: float = 1.0
    log_decay: float = 0.0
    decays: int = 0
    #: sums of the weights, of what is averaged, and of its squares
    averaged: tuple[float, Tensor | None, Tensor | None] = (0.0, None, None)
    #: whether gradients, or trained weights, are added
    gradient: bool = False
    weights: bool = False
    #: it is itself a trained weight
    trained: bool = False
    #: the parameter that it follows, or whose gradient it is
    source: Root | None = None
    origin: Origin | None = None
    #: (value, intended, applied) of the largest element at the last updates
    recent: deque[Tensor] = field(default_factory=lambda: deque(maxlen=_RECENT))
    #: the state of the sum at its worst; see `state`
    worst: Tensor | None = None
    #: (relative error, projection, updates) of sums of gradients, each when it was used
    sums: list[Tensor] = field(default_factory=list)
    name: str = ""
    first_step: int = 0
    last_step: int = 0
    #: number of the step, among those in which the probe was awake, at first sight and at the last update
    first_awake: int = 0
    awake: int = 0
    #: weights are added to a tensor that was there before
    merges: bool = False
    #: what was lost in earlier updates is added again (Kahan)
    compensated: bool = False
    #: the waking period of the probe in which it was last looked at
    period: int = 0
    #: its error is known although the probe has slept
    followed: bool = True
    #: it was set to another value since the last write
    overwritten: bool = False
    #: the instruction that has scaled it since something was added
    scaled_by: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, tensor: Tensor, now: Tensor, *, in_place: bool, step: int, period: int) -> Slot:
        """Return a new slot that holds ``now``."""
        slot = cls(
            memory=Memory(tensor),
            size=tuple(tensor.shape),
            stride=tuple(tensor.stride()),
            offset=int(tensor.storage_offset()),
            dtype=tensor.dtype,
            in_place=in_place,
            start=now,
            base=now,
            last=now,
            pending=now,
            error=torch.zeros_like(now),
            missing=torch.zeros_like(now),
            added=now.square().sum(),
            begun=now != 0,
            totals=now.new_zeros(7),
            doubt=torch.zeros_like(now),
            standing=now.new_zeros(()),
            only_scaled=torch.tensor(True, device=now.device),
            never_negative=torch.tensor(True, device=now.device),
            driven=torch.zeros_like(now, dtype=torch.bool),
            moved=torch.zeros_like(now, dtype=torch.bool),
            first_step=step,
            last_step=step,
            period=period,
        )
        if in_place:
            slot.tensor = weakref.ref(tensor)
        return slot

    # ------------------------------------------------------------------ while it is looked at

    def write(self, exact: Tensor, actual: Tensor, slope: float, *, commit: bool) -> None:
        """Enter one write: what exact arithmetic makes of ``pending``, and what is stored."""
        before, after = self.pending - self.last, exact - actual
        self.error = after if math.isnan(slope) else slope * (self.error - before) + after
        self.doubt = torch.zeros_like(self.doubt) if math.isnan(slope) else abs(slope) * self.doubt
        self.pending, self.last = exact, actual
        self.slope *= slope
        if commit:
            self._commit()

    def _commit(self) -> None:
        u = torch.nan_to_num(self.pending - self.base, 0.0, 0.0, 0.0)
        a = torch.nan_to_num(self.last - self.base, 0.0, 0.0, 0.0)
        uu, au, meant = u * u, a * u, u != 0
        sums = (uu, au, au * au, au * uu, uu * uu, (meant & (a == 0)).double(), meant.double())
        self.totals = self.totals + torch.stack([s.sum() for s in sums])
        self.driven, self.moved = self.driven | meant, self.moved | (a != 0)
        self.added = self.added + uu.sum()
        if self.slope == 1.0:
            self.missing = self.missing + u - a
        new, rounding = u - (self.slope - 1) * self.base, _SCALED * self.base.abs()
        self.only_scaled = self.only_scaled & (new.abs() <= rounding).all()
        self.never_negative = self.never_negative & (new >= -rounding).all()
        if not math.isnan(self.slope) and self.slope > 0:
            self.log_decay += math.log(self.slope)
            self.decays += 1
            if self.slope < 1 and self.source is None and self.pending.dim():
                self.note_averaged((self.pending - self.slope * self.base) / (1 - self.slope))
        largest = self.last.abs().argmax()
        self.recent.append(torch.stack((self.last[largest], u[largest], a[largest])))
        self.base = self.pending = self.last
        self.slope = 1.0
        self.commits += 1
        self.fresh += 1
        tensor = self.tensor() if self.tensor is not None else None
        if tensor is not None:
            now = version_of(tensor)  # of before this write: it is counted when the operation is over
            if self.written >= 0 and now > self.written:
                self.versions_per_commit = float(now - self.written)
            self.written = now

    def note_averaged(self, value: Tensor) -> None:
        """Take note of a value that goes into an average."""
        count, mean, square = self.averaged
        if mean is None or square is None:
            self.averaged = (1.0, value, value.square())
            return
        keep = 1 - 1 / _SEEN
        self.averaged = (keep * count + 1, keep * mean + value, keep * square + value.square())

    def _estimate(self, decay: float) -> tuple[Tensor, Tensor] | None:
        """Return the mean of what is averaged, and how far the average of unseen updates may be from it.

        That is the standard error of the mean, and the spread of an exact average of independent values.
        """
        count, total, squares = self.averaged
        if total is None or squares is None or count < _ENOUGH * (1 - 1 / _SEEN):
            return None
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0.0) * count / (count - 1)
        return mean, (variance * (1 / count + (1 - decay) / (1 + decay))).sqrt()

    @property
    def decay(self) -> float | None:
        """Return what an update leaves of the old value; None when it was never a plain factor."""
        return math.exp(self.log_decay / self.decays) if self.decays else None

    @property
    def per_step(self) -> float:
        """Return the number of updates per optimizer step, while it was looked at."""
        return (self.commits + self.blind) / (self.awake - self.first_awake + 1)

    def fall_asleep(self) -> None:
        """Take note that nobody looks from now on."""
        tensor = self.tensor() if self.tensor is not None else None
        self.version = version_of(tensor) if tensor is not None else -1
        self.written = -1

    def moved_to(self, tensor: Tensor) -> None:
        """Follow the value to the tensor that holds it now."""
        self.memory = Memory(tensor)
        self.size, self.stride = tuple(tensor.shape), tuple(tensor.stride())
        self.offset = int(tensor.storage_offset())

    # ------------------------------------------------------------------ while nobody looked

    def alive(self) -> Tensor | None:
        """Return the tensor as it is now, None when its memory was let go of."""
        storage = self.memory.storage()
        if storage is None:
            return None
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        return empty.set_(storage, self.offset, self.size, self.stride)

    def passed(self) -> float | None:
        """Return how many updates were made since the last look, by the version counter; None: not known."""
        tensor = self.tensor() if self.tensor is not None else None
        now = version_of(tensor) if tensor is not None else -1
        if now < 0 or self.version < 0:
            return None
        return (now - self.version) / self.versions_per_commit

    def catch_up(self, now: Tensor, step: int, source: Tensor | None) -> None:
        """Take note of what has become of the value since the last look; ``source`` is what it follows."""
        updates, decay = self.passed(), self.decay
        if not updates and now.device.type == "cpu" and not torch.equal(now, self.last):
            updates = None  # written through another tensor object, whose version counter is another one
        tensor = self.tensor() if self.tensor is not None else None
        if tensor is not None:
            self.version = version_of(tensor)
        doubt = torch.zeros_like(self.doubt)
        if decay is not None and 0 < decay < 1 and source is None:
            source, doubt = self._estimate(decay) or (None, doubt)
        if decay is not None and 0 < decay < 1 and source is not None:
            if updates is None:
                updates = (step - self.last_step) * self.per_step
            keep = decay**updates
            self.doubt = keep * self.doubt + (1 - keep) * doubt
            self.error = keep * (self.last + self.error) + (1 - keep) * source - now
        else:
            self.followed = False
            if self.recent:
                self._see_sum(now, updates, step)
        self.base = self.pending = self.last = now
        self.last_step, self.slope = step, 1.0

    def _see_sum(self, now: Tensor, updates: float | None, step: int) -> None:
        """Enter a sum as it is after updates that nobody saw: it stood still, went on, or began anew.

        Where their number is not known they count only if it stood still when it was last seen as well.
        """
        window = torch.stack(list(self.recent)[-_WINDOW:])
        typical, largest = window[:, 1].median(), self.last.abs().argmax()
        # what stands still although the format takes such additions has got none, or one of zero
        swamped = (now[largest] + typical).to(self.dtype).double() == now[largest]
        stood = (now == self.last).all() & (window[:, 1] != 0).all() & swamped
        if updates is None:
            stood, updates = stood & (window[-_LAST:, 2] == 0).all(), self.per_step * (step - self.last_step)
        unseen = stood * updates
        self.standing = self.standing + unseen
        self.missing = self.missing.index_add(0, largest.reshape(1), (unseen * typical).reshape(1))
        fell = now[largest].abs() < self.last[largest].abs()
        self._note_worst()
        self.missing = self.missing * ~fell
        self.standing = self.standing * (~fell & stood)
        self.error = torch.zeros_like(self.error)

    def begin_anew(self, now: Tensor) -> None:
        """Start from ``now``: the sum was set to another value."""
        self._note_worst()
        self.base = self.pending = self.last = now
        self.error = self.missing = torch.zeros_like(now)
        self.added, self.begun = now.square().sum(), now != 0
        self.standing, self.doubt = torch.zeros_like(self.standing), torch.zeros_like(self.doubt)
        self.slope, self.fresh, self.followed = 1.0, 0, False
        if not self.trained:  # weights are scaled by their decay, whatever else is written into them
            self.scaled_by = None

    def continues(self, other: Slot, step: int) -> None:
        """Take over from a value that was last seen before the probe slept, where it has not changed."""
        if other.recent and other.last.shape == self.base.shape:
            same = (other.last == self.base).all()
            self.missing = same * other.after(step)[2].expand_as(self.missing)

    def after(self, step: int) -> Tensor:
        """Return `state` as it must be at ``step``, where it stood still and is no more looked at."""
        state = self.state()
        seen = self.tensor is not None and self.tensor() is not None  # its version counter tells more
        if seen or self.last_step == self.first_step:  # or a sum that each step begins anew
            return state
        lost = (state[4] == 1.0) * (self.per_step * (step - self.last_step))
        value, missing, spread = state[1], state[2] + lost * state[3], state[6]
        share = _share(value, missing, spread)
        return torch.stack((share, value, missing, state[3], state[4], state[5] + lost, spread))

    def _note_worst(self) -> None:
        """Keep the state of the sum at which the largest share of it was missing."""
        if self.recent:
            state = self.state()
            self.worst = state if self.worst is None else worse(state, self.worst)

    def state(self) -> Tensor:
        """Return (missing share, value, missing, last increment, lost share, standing, spread).

        Of the largest element. The increment and the share of increments that were lost speak of the last
        updates seen; standing is the number of updates since that changed nothing, spread the root of the sum
        of squares of what was added.
        """
        window = torch.stack(list(self.recent)[-_WINDOW:])
        largest = self.last.abs().argmax()
        value, missing = self.last[largest], self.missing[largest]
        meant = window[-_LAST:, 1] != 0
        lost = (meant & (window[-_LAST:, 2] == 0)).double().sum() / meant.double().sum().clamp(min=1.0)
        spread = self.added.sqrt()
        share = _share(value, missing, spread)
        return torch.stack((share, value, missing, window[:, 1].median(), lost, self.standing, spread))

    @property
    def kind(self) -> AccumulationKind:
        """Return what is done to it."""
        decays = self.decays > 0 and self.log_decay < -1e-9 * self.decays
        # a copy that was left with ``requires_grad`` is scaled down for what it follows, and gets no gradient
        if self.trained and (self.gradient or not (self.weights or decays)) and not bool(self.only_scaled):
            return "update"
        if decays:
            return "average"
        if self.gradient:
            return "gradient"
        return "merge" if self.weights and self.merges and math.prod(self.size) > 1 else "sum"

    def way(self) -> Tensor | None:
        """Return squares of the distance from the exact value, of its way so far, and of how little it tells.

        The last is what rounding the exact value once leaves, and the doubt about it. None where it could not
        be followed.
        """
        if not (self.followed and self.commits):
            return None
        exact = self.last + self.error
        rounding = exact.to(self.dtype).double() - exact
        squares = (
            self.error.square(),
            (exact - self.start).square(),
            rounding.square() + self.doubt.square(),
        )
        return torch.stack([s.sum() for s in squares])

    def close_sum(self) -> None:
        """Enter the sum of gradients as it is now used: relative error, projection, updates."""
        if not self.fresh or len(self.sums) >= _MOST_SUMS:
            return
        exact = self.last + self.error
        scale = torch.maximum(exact.square().sum(), self.added)
        relative = (self.error.square().sum() / scale).sqrt()
        projection = (self.last * exact).sum() / exact.square().sum()
        passes = self.fresh + self.begun.any()  # what it began with is the gradient of the first one
        self.sums.append(torch.stack((relative, projection, passes.double())))
        self.fresh = 0


def _share(value: Tensor, missing: Tensor, spread: Tensor) -> Tensor:
    return missing.abs() / torch.maximum((value + missing).abs(), spread).clamp(min=1e-300)


def worse(one: Tensor, other: Tensor) -> Tensor:
    """Return the state of which the larger share is missing."""
    return torch.where(one[0] > other[0], one, other)


def version_of(tensor: Tensor) -> int:
    """Return the version counter of a tensor; -1 where it has none."""
    return -1 if tensor.is_inference() else int(tensor._version)
