"""Decays whose format has no number near enough to 1."""

from __future__ import annotations

from dataclasses import dataclass

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedDecay:
    """A factor just below 1 that was rounded, and a line that scales tensors by it or what it leaves to 1."""

    format: str
    #: the line that rounded it, and the one that uses it
    place: Place | None = None
    used_at: Place | None = None
    function: str = ""
    #: the factor as it was meant, and as it is
    meant: float = 1.0
    stored: float = 1.0
    #: operations that were seen to use it, in so many optimizer steps
    uses: int = 0
    steps: int = 0
    #: times that one value was scaled by it, one after another (a discounted sum), or its largest power
    repeats: int = 0
