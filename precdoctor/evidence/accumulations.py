"""Sums, averages and counters in a low format, as they were seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precdoctor.evidence.place import Place

#: "sum": values are added; "average": something of the old value is forgotten at each update; "gradient":
#: gradients of several backward passes are summed; "merge": trained weights are added to others; "update":
#: trained weights are updated, by the program's own line
AccumulationKind = Literal["sum", "average", "gradient", "merge", "update"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accumulation:
    """What one line adds to, again and again, in one format."""

    kind: AccumulationKind
    format: str
    #: what an update loses is kept and added to a later one (Kahan): single updates say nothing
    compensated: bool = False
    #: the line that adds, and its function
    place: Place | None = None
    function: str = ""
    #: the line that gave it its format, and the one that made the tensor
    origin: Place | None = None
    made: Place | None = None
    #: no format was named there: it is the default one
    default_format: bool = False
    #: qualified names of the buffers or parameters that are added to, or whose gradients are summed
    names: tuple[str, ...] = ()
    #: number of tensors, and of elements of the largest
    tensors: int = 1
    numel: int = 1
    #: updates that were looked at, and the optimizer steps between the first and the last of them
    updates: int = 0
    first_step: int = 0
    last_step: int = 0
    #: applied against intended updates: 1 = as meant, 0 = lost; 95 % interval over elements and updates
    edq: float = 1.0
    edq_low: float = 1.0
    edq_high: float = 1.0
    #: share of intended changes after which the stored element was the same
    lost_share: float = 0.0
    #: share of the elements with intended changes that never changed, of tensors with 8 updates or more
    still_share: float = 0.0
    #: averages: what an update leaves of the old value; None where it is no plain number
    decay: float | None = None
    #: averages: updates scaled the old value and brought nothing new, as weight decay does
    only_scaled: bool = False
    #: averages: what goes in is made from gradients and never negative, as second moments are
    squares: bool = False
    #: averages: distance from the exact average, relative to the way that has come since the first sight; and
    #: the distance that rounding the exact one once would leave. None where it could not be followed
    distance: float | None = None
    floor: float | None = None
    #: it is itself a trained weight
    trained: bool = False
    #: sums and updates, of the largest element at its worst: what it holds, what was added last, and what is
    #: missing
    value: float = 0.0
    increment: float = 0.0
    missing: float = 0.0
    #: sums: root of the sum of squares of what was added: the size of a sum of numbers of either sign
    spread: float = 0.0
    #: share of the last updates seen that changed nothing, and the number of those that changed nothing while
    #: only the value was looked at
    recent_lost_share: float = 0.0
    standing: float = 0.0
    #: the increments were all the same whole number
    counts: bool = False
    #: gradients: error of the sum at the steps, relative to its size (or that of a sum of as many independent
    #: ones); its projection onto the exact sum; number of backward passes. Of the worst step's median
    #: parameter
    error: float = 0.0
    projection: float = 1.0
    passes: int = 0
    #: gradients: where the sum was read
    read_at: Place | None = None
