"""Formats by enumeration: every value written out from its bits, in exact fractions."""

from __future__ import annotations

import math
from bisect import bisect_left
from fractions import Fraction
from functools import cache

from precdoctor.formats import Format

SMALL = ("float16", "bfloat16", "e4m3fn", "e5m2", "e2m1")


@cache
def magnitudes(fmt: Format) -> tuple[float, ...]:
    """Return the finite values of a small format, from zero up."""
    fraction_bits = fmt.precision - 1
    exponents = 2 ** (fmt.bits - fmt.precision)
    found = []
    for pattern in range(exponents * 2**fraction_bits):
        exponent, fraction = divmod(pattern, 2**fraction_bits)
        if fmt.has_inf and exponent == exponents - 1:
            break
        if fmt.name == "e4m3fn" and pattern == 0x7F:
            break
        bias = exponents // 2 - 1
        if exponent == 0:
            value = Fraction(fraction, 2**fraction_bits) * Fraction(2) ** (1 - bias)
        else:
            value = (1 + Fraction(fraction, 2**fraction_bits)) * Fraction(2) ** (exponent - bias)
        found.append(float(value))
    return tuple(found)


def round_to(fmt: Format, x: float, tie: str) -> float:
    """Return the nearest of all values, the first value beyond the largest standing for overflow."""
    if math.isnan(x):
        return x
    values = magnitudes(fmt)
    magnitude = abs(x)
    step = values[-1] - values[-2]
    if math.isinf(x):
        index = len(values)
    elif magnitude in values[-1:] or magnitude < values[-1]:
        index = _nearest(values, magnitude, tie)
    elif tie == "toward_zero":
        index = len(values) - 1
    else:
        index = len(values) - 1 + _nearest((values[-1], values[-1] + step), magnitude, tie, len(values) - 1)
    if index < len(values):
        return math.copysign(values[index], x)
    if fmt.has_inf:
        return math.copysign(math.inf, x)
    return math.nan if fmt.has_nan else math.copysign(values[-1], x)


def _nearest(values: tuple[float, ...], x: float, tie: str, parity: int = 0) -> int:
    """Return the index of the nearest value; an index is even where the last significand bit is 0."""
    above = min(bisect_left(values, x), len(values) - 1)
    if values[above] <= x:
        return above
    below = above - 1
    to_below, to_above = Fraction(x) - Fraction(values[below]), Fraction(values[above]) - Fraction(x)
    if tie == "toward_zero":
        return below
    if to_below != to_above:
        return below if to_below < to_above else above
    if tie == "ties_away":
        return above
    return below if (below + parity) % 2 == 0 else above


@cache
def line(fmt: Format) -> tuple[float, ...]:
    """Return the finite values from the lowest to the highest, and one step more at both ends."""
    values = magnitudes(fmt)
    values = (*values, values[-1] + (values[-1] - values[-2]))
    return (*(-value for value in reversed(values[1:])), *values)


def neighbour(fmt: Format, x: float, direction: int) -> float:
    """Return what stands beside ``x``, a value of the format, on the number line."""
    return line(fmt)[bisect_left(line(fmt), x) + direction]
