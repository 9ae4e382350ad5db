"""What is kept of one gradient scaler."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from precdoctor.evidence import Bypass, Place, Scaler
from precdoctor.observe.frames import Spot
from precdoctor.observe.models import Models
from precdoctor.observe.scaling.clips import Clips
from precdoctor.observe.scaling.scaled import parameters_of

#: updates that count as the last ones; changes kept of the scale over the run
_RECENT, _TRACE = 64, 128
#: steps left out at which it is looked up which gradients were not finite: the first, and every n-th
_LOOKS, _LOOK_EVERY = 8, 50


@dataclass(slots=True)
class Bypassed:
    """A step whose gradients and whose scaler do not belong together."""

    kind: Literal["scaled gradient", "unscaled loss"]
    spot: Spot | None
    backward: Spot | None
    optimizer: str
    scale: float
    seen: int = 0


@dataclass(slots=True, eq=False)
class ScalerHistory:
    """What is known of one scaler."""

    ref: weakref.ref[torch.amp.GradScaler]
    type: str
    requested: bool = True
    enabled: bool = False
    spot: Spot | None = None
    scaled_at: Spot | None = None
    stepped_at: Spot | None = None
    #: a loss was scaled since the last update; one ever was
    in_use: bool = False
    was_used: bool = False
    #: the program has read the scale; and since it scaled a loss, before the update
    was_read: bool = False
    read_in_use: bool = False
    #: optimizers whose gradients were divided since the last update
    unscaled: set[int] = field(default_factory=set)
    #: what tells of gradients that are not finite: of this update, and (those, scale) of those not read yet
    found: list[Tensor] = field(default_factory=list)
    pending: list[tuple[list[Tensor], Tensor]] = field(default_factory=list)
    #: the last loss that was scaled
    outputs: Tensor | None = None
    clips: Clips = field(default_factory=Clips)
    bypassed: dict[tuple[str, Spot | None], Bypassed] = field(default_factory=dict)
    _first: float | None = None
    _last: float = 1.0
    _smallest: float = float("inf")
    _updates: int = 0
    _skipped: int = 0
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _trace: list[tuple[int, float]] = field(default_factory=list)
    _overflowing: list[weakref.ref[Tensor]] = field(default_factory=list)
    _names: tuple[str, ...] = ()
    _has_nan: bool = False
    _loss_finite: bool | None = None

    @property
    def scale(self) -> float:
        """Return the scale as it is now; waits for the device."""
        tensor = getattr(self.ref(), "_scale", None)
        return float(tensor) if isinstance(tensor, Tensor) else self._last

    def used(self) -> None:
        """Take note that a loss was scaled."""
        if self._first is None:
            self._first = self._last = self._smallest = self.scale
        self.in_use = self.was_used = True

    def stepped(self, optimizer: torch.optim.Optimizer) -> bool:
        """Take note that a step through the scaler has ended; tell whether it is known to be left out."""
        states = getattr(self.ref(), "_per_optimizer_states", {})
        found = (
            list(states[id(optimizer)]["found_inf_per_device"].values()) if id(optimizer) in states else []
        )
        self.found += found
        at_hand = all(t.device.type == "cpu" for t in found) or self._updates < _LOOKS
        due = self._skipped < _LOOKS or self._skipped % _LOOK_EVERY == 0
        left_out = at_hand and due and any(bool(t.sum() > 0) for t in found)
        if left_out:
            self._look(optimizer)
        return left_out

    def _look(self, optimizer: torch.optim.Optimizer) -> None:
        """Look up which gradients are not finite."""
        wrong = [
            p
            for p in parameters_of(optimizer)
            if p.grad is not None and not p.grad.is_sparse and not bool(torch.isfinite(p.grad).all())
        ]
        if wrong:
            self._overflowing = [weakref.ref(p) for p in wrong]
            self._names = ()
            self._has_nan = any(bool(torch.isnan(p.grad).any()) for p in wrong if p.grad is not None)
            if self.outputs is not None:
                self._loss_finite = bool(torch.isfinite(self.outputs).all())

    def updated(self, most: int) -> None:
        """Take note of an update; ``most`` are kept unread, of a scale that lies on an accelerator."""
        tensor = getattr(self.ref(), "_scale", None)
        if isinstance(tensor, Tensor):
            self.pending.append((self.found, tensor.detach().clone()))
            if tensor.device.type == "cpu" or len(self.pending) >= most:
                self.resolve()
        self.found, self.in_use, self.read_in_use = [], False, False
        self.unscaled.clear()
        self.clips.pending.clear()

    def resolve(self) -> None:
        """Read what the last updates have left."""
        for found, scale in self.pending:
            left_out = any(bool(t.sum() > 0) for t in found)
            self._updates += 1
            self._skipped += left_out
            self._recent.append(left_out)
            self._last = float(scale)
            self._smallest = min(self._smallest, self._last)
            if not self._trace or self._trace[-1][1] != self._last:
                self._trace.append((self._updates, self._last))
            if len(self._trace) > _TRACE:
                self._trace = self._trace[:1] + self._trace[2::2]
        self.pending.clear()

    def look(self, models: Models) -> None:
        """Note the names of parameters while they live."""
        live = [p for reference in self._overflowing if (p := reference()) is not None]
        names = [owner.name for p in live if (owner := models.owner(p)) is not None]
        self._names = tuple(names) or self._names

    def record(self, place: Callable[[Spot | None], Place | None]) -> Scaler:
        """Return what was seen."""
        self.resolve()
        scale = self.scale if self.enabled else 1.0
        first = self._first if self._first is not None else scale
        return Scaler(
            enabled=self.enabled,
            scale=scale,
            type=self.type,
            requested=self.requested,
            place=place(self.spot),
            scaled_at=place(self.scaled_at),
            stepped_at=place(self.stepped_at),
            first_scale=first,
            smallest_scale=min(self._smallest, scale),
            updates=self._updates,
            skipped=self._skipped,
            recent=len(self._recent),
            recent_skipped=sum(self._recent),
            trace=tuple(self._trace),
            overflowing=self._names,
            has_nan=self._has_nan,
            loss_finite=self._loss_finite,
            early_clips=self.clips.evidence(place),
            bypasses=tuple(
                Bypass(
                    kind=b.kind,
                    place=place(b.spot),
                    backward=place(b.backward),
                    optimizer=b.optimizer,
                    seen=b.seen,
                    scale=b.scale,
                )
                for b in self.bypassed.values()
            ),
        )


def history_of(scaler: Any) -> ScalerHistory:
    """Return an empty history."""
    name = f"{type(scaler).__module__}.{type(scaler).__qualname__}"
    return ScalerHistory(weakref.ref(scaler), name, enabled=bool(scaler.is_enabled()))
