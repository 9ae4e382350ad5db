"""Slow twins: sums and averages with rounding done by hand, beside exact ones in Python's numbers."""

from __future__ import annotations

from collections.abc import Sequence

from precdoctor.formats import Format, round_to


def summed(fmt: Format, increments: Sequence[float]) -> tuple[float, float, int]:
    """Return (stored sum, exact sum, additions that changed nothing) of numbers added one by one."""
    stored, lost = 0.0, 0
    for increment in increments:
        fresh = round_to(fmt, stored + increment)
        lost += fresh == stored
        stored = fresh
    return stored, sum(increments), lost


def averaged(fmt: Format, start: float, values: Sequence[float], decay: float) -> tuple[float, float]:
    """Return (stored average, exact average): the old value scaled and stored, then the new one added."""
    stored = exact = start
    for value in values:
        stored = round_to(fmt, round_to(fmt, stored * decay) + round_to(fmt, value) * (1 - decay))
        exact = exact * decay + value * (1 - decay)
    return stored, exact
