"""Clipping of gradients that are still multiplied by a loss scale, by torch's functions or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from precdoctor.evidence import EarlyClip, Place
from precdoctor.observe.frames import Spot
from precdoctor.observe.scaling.units import Sample, Sizes, constant, sizes, together

#: calls at one line that are measured; gradients measured for traces of the user's own clipping
_SAMPLES, _MEASURED = 16, 12
#: calls that are noted
_CALLS = 256


@dataclass(slots=True, eq=False)
class Clip:
    """A call that clipped gradients."""

    kind: Literal["norm", "value", "clamp"]
    spot: Spot | None
    #: identities of the parameters
    parameters: frozenset[int]
    scale: float
    threshold: float
    #: largest norm or value before; a tensor where it was not read yet
    before: Tensor | float | None


@dataclass(slots=True)
class _Early:
    kind: Literal["norm", "value", "clamp"]
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
    #: gradients as they were and as they were divided, where no clip was seen
    measured: list[Sample] = field(default_factory=list)
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

    def note_clamp(self, clip: Clip) -> None:
        """Take note of gradients clamped one by one within a backward pass; those of a line are one."""
        for known in self.pending:
            if (known.kind, known.spot, known.parameters) == (clip.kind, clip.spot, clip.parameters):
                known.before = max(float(known.before or 0.0), float(clip.before or 0.0))
                return
        self.note_call(clip)

    @property
    def wants_measuring(self) -> bool:
        """Tell whether gradients are still looked at for what the user's own clipping leaves behind."""
        return len(self.measured) < _MEASURED

    def note(
        self, parameters: list[Tensor], before: dict[int, Sizes], scale: float, spot: Spot | None
    ) -> None:
        """Measure gradients that are divided now, with no clip of torch's since they were ``before``."""
        known = [(p, g, before[id(p)]) for p in parameters if (g := p.grad) is not None and id(p) in before]
        parts = [
            (id(p), was, now, weights)
            for p, g, was in known
            if (now := sizes(g)) is not None
            and (weights := sizes(p)) is not None
            and now["row"].shape == was["row"].shape == weights["row"].shape
        ]
        if not parts:
            return
        ids, *three = zip(*parts, strict=True)
        sample = Sample(scale, ids, *map(together, three))
        if 0 < float(sample.after["all"]) < float("inf"):
            self.measured.append(sample)
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
        own = constant(self.measured)
        if own is not None:
            found.append(
                EarlyClip(
                    kind="own",
                    place=place(self.written or self.measured_at),
                    seen=len(own.samples),
                    samples=own.samples,
                    of_weights=own.of_weights,
                    stepped_at=place(self.measured_at),
                )
            )
        return tuple(found)


def largest(gradients: Iterable[Tensor]) -> float:
    """Return the largest magnitude of gradients together."""
    tops = [float(g.detach().abs().max()) for g in gradients if not g.is_sparse and g.numel()]
    return max(tops, default=0.0)
