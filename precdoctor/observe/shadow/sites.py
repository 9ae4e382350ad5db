"""Operations at which values left their format or lost digits, and what became of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from precdoctor.evidence import Place
from precdoctor.evidence.exactness import Cancellation, LossySum, NonFinite, Phase
from precdoctor.observe.frames import Spot
from precdoctor.observe.shadow.look import Look
from precdoctor.observe.shadow.table import Origin

#: error of a result from which it is hurt: the norm of the error over that of the exact values
HURT = 0.1
#: error of a sum from which it has lost what its terms brought: 12 half-ulps of bfloat16
SWAMPED = 0.05
#: error of a logarithm from which it is that of another number: by a factor of e
NATS = 1.0
#: modules, and lines of constants, named for one site
_MOST_NAMES = 32
_MOST_BIRTHS = 4

Placing = Callable[[Spot | None], Place | None]


@dataclass(slots=True, eq=False)
class Site:
    """One operation on one of the user's lines, over all steps in which something was seen of it."""

    spot: Spot | None
    operation: str
    format: str
    modules: dict[int, weakref.ref[nn.Module]] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    origin: Origin | None = None
    births: dict[Spot, None] = field(default_factory=dict)
    first_step: int = 0
    last_step: int = 0
    #: forward passes in which it was seen, by their numbers
    passes: set[int] = field(default_factory=set)
    graded: bool = False
    #: in a backward pass
    backward: bool = False
    #: what wrong values reached, and in which passes
    reached: dict[str, set[int]] = field(default_factory=dict)
    reached_at: Spot | None = None
    reached_error: float = 0.0

    @property
    def least(self) -> float:
        """Return the error, norm over norm, down to which a tensor carries the damage."""
        return HURT

    def see(self, look: Look, origin: Origin | None, births: Iterable[Spot]) -> None:
        """Note that it was seen, with an error that comes from somewhere."""
        if not self.passes:
            self.first_step = look.step
        self.last_step = look.step
        self.passes.add(look.number)
        self.graded |= look.is_graded
        self.backward |= look.operation.backward
        module = look.module
        if module is not None and len(self.modules) < _MOST_NAMES:
            self.modules.setdefault(id(module), weakref.ref(module))
        self.origin = origin or self.origin
        for spot in births:
            if len(self.births) < _MOST_BIRTHS:
                self.births[spot] = None

    def carried(self, spot: Spot | None, error: float) -> None:
        """Note that a result on a line carries the damage."""

    def reach(self, what: str, number: int, spot: Spot | None, error: float) -> None:
        """Note that wrong values of it got somewhere in a pass."""
        self.reached.setdefault(what, set()).add(number)
        self.reached_at = self.reached_at or spot
        self.reached_error = max(self.reached_error, error)

    def look(self, names: dict[int, str]) -> None:
        """Note the names of its modules while they live."""
        for key, reference in list(self.modules.items()):
            module = reference()
            if module is None:
                del self.modules[key]
            elif key in names:
                self.names[names[key]] = None

    def common(self, place: Placing) -> dict[str, Any]:
        """Return what all records of sites have."""
        return {
            "place": place(self.spot),
            "cause": place(self.origin.spot) if self.origin is not None else None,
            "births": tuple(p for p in map(place, self.births) if p is not None),
            "function": self.spot.function if self.spot is not None else "",
            "modules": tuple(self.names),
            "operation": self.operation,
            "format": self.format,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "passes": len(self.passes),
            "graded": self.graded,
            "reached": tuple((what, len(passes)) for what, passes in self.reached.items()),
            "reached_at": place(self.reached_at),
            "reached_error": self.reached_error,
        }


@dataclass(slots=True, eq=False)
class NonFiniteSite(Site):
    """See `precdoctor.evidence.exactness.NonFinite`."""

    kind: str = "overflow"
    mask: bool = False
    reduction: bool = False
    largest: float | None = None
    share: float = 0.0
    nan_at: Spot | None = None
    nan_passes: set[int] = field(default_factory=set)
    read_passes: set[int] = field(default_factory=set)
    loss_passes: set[int] = field(default_factory=set)
    gradient_passes: set[int] = field(default_factory=set)
    saved_at: Spot | None = None
    loaded_at: Spot | None = None

    def record(self, place: Placing) -> NonFinite:
        """Return what was seen."""
        return NonFinite(
            **self.common(place),
            kind=self.kind,
            mask=self.mask,
            reduction=self.reduction,
            largest=self.largest,
            share=self.share,
            nan_at=place(self.nan_at),
            nan_passes=len(self.nan_passes),
            read_passes=len(self.read_passes),
            loss_passes=len(self.loss_passes),
            gradient_passes=len(self.gradient_passes),
            saved_at=place(self.saved_at),
            loaded_at=place(self.loaded_at),
        )


@dataclass(slots=True, eq=False)
class CancellationSite(Site):
    """See `precdoctor.evidence.exactness.Cancellation`."""

    derivative: bool = False
    ratio: bool = False
    error_before: float = 0.0
    error: float = 0.0
    error_first: float = 0.0
    share: float = 0.0
    remaining: float = 0.0
    repeated: bool = False
    steered: int = 0
    steered_at: Spot | None = None

    def lost(self, *, before: float, error: float, share: float, remaining: float) -> None:
        """Note errors before and after, relative, and how much of the arguments remains."""
        if not self.error and not self.share:
            self.error_first = error
        if max(error, share) >= max(self.error, self.share):
            self.error_before, self.error, self.share, self.remaining = before, error, share, remaining

    def record(self, place: Placing, evaluated: AbstractSet[int] = frozenset()) -> Cancellation:
        """Return what was seen; ``evaluated`` are the passes in which a model was evaluated."""
        origin = self.origin
        return Cancellation(
            **self.common(place),
            source=origin.operation if origin is not None else "",
            source_format=str(origin.format).removeprefix("torch.") if origin is not None else "",
            probabilities=origin is not None and origin.probabilities,
            derivative=self.derivative,
            ratio=self.ratio,
            error_before=self.error_before,
            error=self.error,
            error_first=self.error_first,
            evaluations=len(evaluated & set[int]().union(*self.reached.values())),
            share=self.share,
            remaining=self.remaining,
            repeated=self.repeated,
            steered=self.steered,
            steered_at=place(self.steered_at),
        )


@dataclass(slots=True, eq=False)
class LossySumSite(Site):
    """See `precdoctor.evidence.exactness.LossySum`."""

    error: float = 0.0
    nats: float = 0.0
    nats_passes: set[int] = field(default_factory=set)
    indexed_passes: set[int] = field(default_factory=set)

    @property
    def least(self) -> float:
        """Return the error, norm over norm, down to which a tensor carries the damage."""
        return SWAMPED

    def carried(self, spot: Spot | None, error: float) -> None:
        """Note that a result on a line carries the damage."""
        if spot == self.spot:
            self.error = max(self.error, error)

    def record(self, place: Placing) -> LossySum:
        """Return what was seen."""
        return LossySum(
            **self.common(place),
            error=self.error,
            nats=self.nats,
            nats_passes=len(self.nats_passes),
            indexed_passes=len(self.indexed_passes),
        )


@dataclass(slots=True, eq=False)
class PhaseSite(Site):
    """See `precdoctor.evidence.exactness.Phase`."""

    share: float = 0.0
    error_rad: float = 0.0
    largest: float = 0.0

    def record(self, place: Placing) -> Phase:
        """Return what was seen."""
        return Phase(**self.common(place), share=self.share, error_rad=self.error_rad, largest=self.largest)
