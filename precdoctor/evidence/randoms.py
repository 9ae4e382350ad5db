"""What was seen of uniform random numbers made in 16-bit formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarseUniform:
    """Uniform random numbers of 16 bits, and one thing that they were used for."""

    format: str
    #: "tail": a function that goes to infinity where the numbers go to 0 or 1, such as log; "probability":
    #: they were compared with one; "entry": they chose from a table, by a cumulated distribution or as index
    use: Literal["tail", "probability", "entry"]
    #: the lines that drew and used them, and the operation, such as "log"
    place: Place | None = None
    used_at: Place | None = None
    operation: str = ""
    #: qualified name of the module in whose forward they were used; empty outside
    module: str = ""
    #: numbers drawn, and different ones among those of the largest drawing
    drawn: int = 0
    distinct: int = 0
    #: distance from the singularity: the smallest one other than 0, how often it came, and how often 0
    nearest: float = 0.0
    nearest_count: int = 0
    zeros: int = 0
    #: largest magnitude of the result
    largest: float = 0.0
    #: how many were expected nearer than the nearest one; of the rarer outcome of a comparison: how often it
    #: was meant to come, and how often it came; of entries that no number of the format chooses: the same
    expected: float = 0.0
    observed: float = 0.0
    #: entries with a probability, and those of them that no number of the format chooses
    entries: int = 0
    unreached: int = 0
