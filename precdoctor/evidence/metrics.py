"""Values that a schedule waits on: `ReduceLROnPlateau` lowers the rate when they stop to improve."""

from __future__ import annotations

from dataclasses import dataclass

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What a line of the run gave to a schedule."""

    #: of the tensor; empty for numbers of Python
    format: str
    place: Place | None = None
    #: the values, in order, the last few hundred
    values: tuple[float, ...] = ()
    #: how often the schedule lowered a rate on one of them
    reductions: int = 0
