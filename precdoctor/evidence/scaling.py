"""What was seen of gradient scalers: the scale over time, steps left out, the order of calls around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyClip:
    """Gradients that were clipped while they were still multiplied by the scale."""

    #: "norm" or "value": what was clipped; "clamp": values, within the backward pass; "own": by code of the
    #: user's own, known by what it left behind
    kind: Literal["norm", "value", "clamp", "own"]
    #: where it was called; of the user's own, the last line that wrote to a gradient, else that of the step
    place: Place | None = None
    #: times it was seen
    seen: int = 0
    #: (scale, threshold, largest norm or value before clipping or None where it is not known), at some times
    samples: tuple[tuple[float, float, float | None], ...] = ()
    #: of the user's own whose threshold follows the weights: the threshold over their norm
    of_weights: float | None = None
    #: where the step that divided the gradients afterwards was called
    stepped_at: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bypass:
    """A step whose gradients and whose scaler do not belong together."""

    #: "scaled gradient": of a scaled loss, stepped as they are; "unscaled loss": divided by a scale that they
    #: never had
    kind: Literal["scaled gradient", "unscaled loss"]
    #: the step, and the backward pass
    place: Place | None = None
    backward: Place | None = None
    #: class of the optimizer, times it was seen, and the scale at the first of them
    optimizer: str = ""
    seen: int = 0
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaler:
    """A gradient scaler."""

    #: as it is
    enabled: bool
    #: at the end of the run
    scale: float
    #: class, such as "torch.amp.grad_scaler.GradScaler"
    type: str = ""
    #: as was asked for; torch disables one for CUDA, with a warning, where there is no CUDA
    requested: bool = True
    #: lines that made it, scaled a loss with it, and stepped an optimizer through it
    place: Place | None = None
    scaled_at: Place | None = None
    stepped_at: Place | None = None
    #: scale before the first update, and the smallest one
    first_scale: float = 1.0
    smallest_scale: float = 1.0
    #: calls of update(), and those before which a step was left out because gradients were not finite
    updates: int = 0
    skipped: int = 0
    #: the same over the last updates, at most 64
    recent: int = 0
    recent_skipped: int = 0
    #: (update, scale) where it changed
    trace: tuple[tuple[int, float], ...] = ()
    #: parameters whose gradients were not finite at the last step that was looked at and left out
    overflowing: tuple[str, ...] = ()
    #: among them were NaN; the loss itself was finite then, None where that is not known
    has_nan: bool = False
    loss_finite: bool | None = None
    early_clips: tuple[EarlyClip, ...] = ()
    bypasses: tuple[Bypass, ...] = ()
