"""Spacing and rounding in a format, on Python floats; exact, for every format and every float.

Numbers below the normal range have the spacing of the subnormals, numbers beyond ``max`` that of ``max``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from precdoctor.formats.format import Format

#: rule for what lies between two neighbours
Tie = Literal["ties_to_even", "ties_away", "toward_zero"]

#: (lower neighbour in quanta, distance above it as a share of the quantum) -> take the upper one
_TAKES_UPPER: dict[Tie, Callable[[int, float], bool]] = {
    "ties_to_even": lambda lower, rest: rest > 0.5 or (rest == 0.5 and lower % 2 == 1),
    "ties_away": lambda _lower, rest: rest >= 0.5,
    "toward_zero": lambda _lower, _rest: False,
}


def _ulp_exponent(fmt: Format, x: float) -> int:
    """Return the base-2 logarithm of the spacing in the binade of a finite ``x``."""
    exponent = math.frexp(x)[1] - 1 if x else fmt.min_exponent
    return min(max(exponent, fmt.min_exponent), fmt.max_exponent) - fmt.precision + 1


def _gap_exponent(fmt: Format, x: float, direction: float) -> int:
    """Return the base-2 logarithm of the gap that a finite ``x`` has in that direction."""
    exponent = _ulp_exponent(fmt, x)
    towards_zero = math.copysign(1.0, x) != math.copysign(1.0, direction)
    at_binade_edge = abs(math.frexp(x)[0]) == 0.5 and fmt.min_normal < abs(x) <= fmt.max
    return exponent - 1 if towards_zero and at_binade_edge else exponent


def ulp(fmt: Format, x: float) -> float:
    """Return the spacing of the format in the binade of ``x``; NaN for what is not finite."""
    return math.ldexp(1.0, _ulp_exponent(fmt, x)) if math.isfinite(x) else math.nan


def half_ulp(fmt: Format, x: float, direction: float) -> float:
    """Return half the gap beside ``x``, a value of the format: a smaller update is rounded away.

    ``direction`` counts by its sign: positive when the value increases. At a power of two the gap
    towards zero is half the gap away from it. In float64, half the smallest subnormal reads 0.
    """
    return math.ldexp(1.0, _gap_exponent(fmt, x, direction) - 1) if math.isfinite(x) else math.nan


def headroom_bits(fmt: Format, weight: float, update: float) -> float:
    """Return log2(abs(update) / half_ulp(weight)) in bits; -inf for no update, NaN where not finite.

    Negative means that ties_to_even loses the update: the format is so many bits short.
    """
    if not math.isfinite(weight):
        return math.nan
    if update == 0:
        return -math.inf
    return math.log2(abs(update)) - (_gap_exponent(fmt, weight, update) - 1)


def next_up(fmt: Format, x: float) -> float:
    """Return the smallest value of the format above ``x``; above ``max``, what overflow gives."""
    if math.isnan(x) or x == math.inf:
        return x
    if x < -fmt.max:
        return -fmt.max
    if x >= fmt.max:
        return fmt.overflow
    exponent = _gap_exponent(fmt, x, 1.0)
    quanta = math.floor(math.ldexp(x, -exponent)) + 1
    return math.ldexp(float(quanta), exponent) if quanta else math.copysign(0.0, x)


def next_down(fmt: Format, x: float) -> float:
    """Return the largest value of the format below ``x``; below ``-max``, what overflow gives."""
    return -next_up(fmt, -x)


def round_to(fmt: Format, x: float, tie: Tie = "ties_to_even", *, saturate: bool = False) -> float:
    """Return ``x`` rounded to the format.

    Beyond ``max``: infinity, or NaN in a format without one (e4m3fn); ``saturate`` gives ``max``, and so
    does toward_zero for finite ``x`` and any rule in a format that has neither (e2m1). NaN stays NaN.
    """
    if tie == "toward_zero" and math.isfinite(x):
        saturate = True
    return _round(fmt, x, _TAKES_UPPER[tie], saturate)


def round_stochastic(fmt: Format, x: float, u: float, *, saturate: bool = False) -> float:
    """Return one of the two neighbours of ``x``, the farther from zero when ``u`` says so.

    With ``u`` uniform in [0, 1) the mean is ``x``. Overflow is as in `round_to`.
    """
    return _round(fmt, x, lambda _lower, rest: u < rest, saturate)


def _round(fmt: Format, x: float, takes_upper: Callable[[int, float], bool], saturate: bool) -> float:
    if math.isnan(x):
        return x
    magnitude = abs(x)
    if math.isfinite(x):
        exponent = _ulp_exponent(fmt, x)
        quanta = math.ldexp(magnitude, -exponent)
        lower = math.floor(quanta)
        magnitude = math.ldexp(float(lower + takes_upper(lower, quanta - lower)), exponent)
    if magnitude > fmt.max:
        magnitude = fmt.max if saturate else fmt.overflow
    return math.copysign(magnitude, x)
