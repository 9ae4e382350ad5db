"""A gradient scaler in plain Python, by its documentation: what its scale does over time."""

from __future__ import annotations

from collections.abc import Sequence


def scales(
    infinite: Sequence[bool], first: float, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000
) -> list[float]:
    """Return the scale after each update, given before which of them a gradient was not finite."""
    found, scale, good = [], first, 0
    for bad in infinite:
        good = 0 if bad else good + 1
        if bad:
            scale *= backoff
        elif good == interval:
            scale, good = scale * growth, 0
        found.append(scale)
    return found
