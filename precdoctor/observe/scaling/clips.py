"""Clipping of gradients that are still multiplied by a loss scale, by torch's functions or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from precdoctor.evidence import EarlyClip, Place
from precdoctor.observe.frames import Spot

#: calls at one line that are measured; gradients measured for traces of the user's own clipping
_SAMPLES, _MEASURED = 16, 12
#: calls that are noted
_CALLS = 256
#: measurements from which a constant says something, and how constant it is then (relative)
_CONSTANT, _EQUAL = 4, 1e-3
#: elements that have the largest magnitude, from which values were clipped
_TIES = 5


@dataclass(slots=True, eq=False)
class Clip:
    """A call that clipped gradients."""

    kind: Literal["norm", "value"]
    spot: Spot | None
    #: identities of the parameters
    parameters: frozenset[int]
    scale: float
    threshold: float
    #: largest norm or value before; a tensor where it was not read yet
    before: Tensor | float | None


@dataclass(slots=True)
class _Early:
    kind: Literal["norm", "value"]
    spot: Spot | None
    stepped: Spot | None
    seen: int = 0
    samples: list[tuple[float, float, float | None]] = field(default_factory=list)


@dataclass(slots=True)
class Clips:
    """The clips around one scaler."""

    #: calls that were noted
    noted: int = 0
    #: since the last update, with the gradients as they were
    pending: list[Clip] = field(default_factory=list)
    early: dict[tuple[str, Spot | None], _Early] = field(default_factory=dict)
    #: (scale, norm, largest magnitude, elements that have it) where no clip was seen
    measured: list[tuple[float, float, float, int]] = field(default_factory=list)
    measured_at: Spot | None = None
    #: the last line that wrote to a gradient between its backward pass and its division
    written: Spot | None = None

    def unscaling(self, optimizer: frozenset[int], spot: Spot | None) -> bool:
        """Take note that the gradients of these parameters are divided now; True where they were clipped."""
        hit = [clip for clip in self.pending if clip.parameters & optimizer]
        for clip in hit:
            known = self.early.setdefault((clip.kind, clip.spot), _Early(clip.kind, clip.spot, spot))
            known.seen += 1
            if len(known.samples) < _SAMPLES:
                before = float(clip.before) if clip.before is not None else None
                known.samples.append((clip.scale, clip.threshold, before))
        return bool(hit)

    @property
    def wants_calls(self) -> bool:
        """Tell whether further calls are noted: the scale is read from the device for each."""
        return self.noted < _CALLS

    def note_call(self, clip: Clip) -> None:
        """Take note of a call that clipped gradients."""
        self.noted += 1
        self.pending.append(clip)

    @property
    def wants_measuring(self) -> bool:
        """Tell whether gradients are still looked at for what the user's own clipping leaves behind."""
        return len(self.measured) < _MEASURED

    def note(self, gradients: list[Tensor], scale: float, spot: Spot | None) -> None:
        """Measure gradients that are divided now, with no clip of torch's before."""
        norm, largest, ties = measure(gradients)
        if 0 < norm < float("inf"):
            self.measured.append((scale, norm, largest, ties))
            self.measured_at = spot

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[EarlyClip, ...]:
        """Return what was seen."""
        found = [
            EarlyClip(
                kind=e.kind,
                place=place(e.spot),
                seen=e.seen,
                samples=tuple(e.samples),
                stepped_at=place(e.stepped),
            )
            for e in self.early.values()
        ]
        own = self._own()
        if own:
            found.append(
                EarlyClip(
                    kind="own",
                    place=place(self.written or self.measured_at),
                    seen=len(self.measured),
                    samples=own,
                    stepped_at=place(self.measured_at),
                )
            )
        return tuple(found)

    def _own(self) -> tuple[tuple[float, float, float | None], ...]:
        """Return (scale, constant, None) where norm or largest magnitude is the same at all times."""
        if len(self.measured) < _CONSTANT:
            return ()
        for index in (1, 2):
            values = [m[index] for m in self.measured]
            if max(values) - min(values) > _EQUAL * max(values):
                continue
            if index == 1 or all(m[3] >= _TIES for m in self.measured):
                return tuple((m[0], m[index], None) for m in self.measured)
        return ()


def measure(gradients: Iterable[Tensor]) -> tuple[float, float, int]:
    """Return the norm of gradients together, their largest magnitude, and how many elements have it."""
    squares, largest, ties = 0.0, 0.0, 0
    for gradient in gradients:
        if gradient.is_sparse or not gradient.numel():
            continue
        squares += float(gradient.detach().double().square().sum())
        size = gradient.detach().abs()
        top = float(size.max())
        if top > largest:
            largest, ties = top, 0
        if top == largest:
            ties += int((size == top).sum())
    return float(squares**0.5), largest, ties
