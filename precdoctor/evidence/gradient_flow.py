"""What the range of float16, or of 8 bits, did to gradients, on their way and afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientLoss:
    """Operations on gradients that were done again in float32: all of one name that one line calls."""

    #: "underflow": results that the format cannot hold, too small; "overflow": too large; "patched": what
    #: was not finite has been replaced, whatever its format
    kind: Literal["underflow", "overflow", "patched"]
    #: name, such as "aten::mm"; part of a backward pass, else of what a program does to gradients itself
    op: str
    backward: bool
    #: format of the results; of 8 bits, the line of the forward pass that casts to it
    format: str = "float16"
    cast: Place | None = None
    #: the line that called it (of a backward pass: that which called backward), and its function
    place: Place | None = None
    function: str = ""
    #: times it was looked at, times it lost half of its result or overflowed, and the backward passes
    #: of those
    seen: int = 0
    lost: int = 0
    passes: int = 0
    #: numbers of optimizer steps made before, at which it lost
    steps: int = 0
    #: the result is gradients again: gradients that were added up, or cast
    adds_or_casts: bool = False
    #: at the worst: largest magnitude of the exact result, share of its elements that are lost, and
    #: what is left of it (projection of the result onto the exact one)
    largest: float = 0.0
    share: float = 0.0
    projection: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """Attempts at an optimizer step, told apart by the backward passes before one, as many each time."""

    made: int = 0
    #: those after which no step was made
    left_out: int = 0
    #: size of the losses, scaled as they are, in the attempt after such a one over that in it, median
    loss_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientFlow:
    """How gradients fared in float16 and in formats of 8 bits, in the backward passes that were looked at."""

    #: backward passes, and operations in them, that were looked at
    passes: int = 0
    operations: int = 0
    losses: tuple[GradientLoss, ...] = ()
    #: over the whole run, looked at or not
    attempts: Attempts = Attempts()
