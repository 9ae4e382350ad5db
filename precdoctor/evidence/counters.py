"""Step counters in a low format, as they were read."""

from __future__ import annotations

from dataclasses import dataclass

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A step counter that an optimizer keeps as a tensor of one element."""

    #: index in `Evidence.optimizers`
    optimizer: int
    #: the optimizer's own key, such as "step"
    key: str
    format: str
    #: qualified names of the parameters that it was read of
    parameters: tuple[str, ...] = ()
    #: steps made and the value, at the first and the last reading
    first_step: int = 0
    first_value: float = 0.0
    last_step: int = 0
    last_value: float = 0.0
    #: its change per step, while it changed
    increment: float = 0.0
    #: steps made when it had the last value for the first time, as far as it was read
    stands_since: int = 0
    #: the line that makes it; it names no format, so that it gets the default one
    made: Place | None = None
    default: bool = False
