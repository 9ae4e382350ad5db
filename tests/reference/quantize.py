"""Block formats one element at a time, in exact fractions, with every value written out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

from precdoctor.formats import E2M1, E4M3FN, E5M2, BlockFormat
from tests.reference import formats as reference

NF4 = (
    "-1 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635"
    " -0.18477343022823334 -0.09105003625154495 0 0.07958029955625534 0.16093020141124725"
    " 0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941 0.7229568362236023 1"
)
MAGNITUDES: dict[str, Sequence[float]] = {
    "e2m1": reference.magnitudes(E2M1),
    "e4m3fn": reference.magnitudes(E4M3FN),
    "e5m2": reference.magnitudes(E5M2),
    "bnb-fp4": tuple(float(Fraction(twelfths)) / 12 for twelfths in (0, "1/16", 2, 3, 4, 6, 8, 12)),
    "int4": tuple(map(float, range(8))),
    "int8": tuple(map(float, range(128))),
}


def values(fmt: BlockFormat) -> list[float]:
    name = fmt.codebook.name
    if name == "nf4":
        return [float(word) for word in NF4.split()]
    magnitudes = MAGNITUDES[name]
    lowest = [-(magnitudes[-1] + 1)] if fmt.affine else []
    return [*lowest, *(-magnitude for magnitude in reversed(magnitudes[1:])), *magnitudes]


def round_trip(fmt: BlockFormat, rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Quantize a matrix and back; the first index is the channel."""
    amax = max(abs(value) for row in rows for value in row)
    tensor_scale = 1.0
    if fmt.has_tensor_scale and amax:
        tensor_scale = float32(amax / (max(values(fmt)) * 448))
    back = [[0.0] * len(row) for row in rows]
    for places in blocks(fmt, rows):
        block = [rows[i][j] for i, j in places]
        for (i, j), value in zip(places, block_trip(fmt, block, tensor_scale), strict=True):
            back[i][j] = value
    return back


def blocks(fmt: BlockFormat, rows: Sequence[Sequence[float]]) -> Iterator[list[tuple[int, int]]]:
    lines = [[(i, j) for j in range(len(row))] for i, row in enumerate(rows)]
    if fmt.flat or fmt.block == "tensor":
        lines = [[place for line in lines for place in line]]
    for line in lines:
        size = fmt.block if isinstance(fmt.block, int) else len(line)
        for start in range(0, len(line), size):
            yield line[start : start + size]


def block_trip(fmt: BlockFormat, block: Sequence[float], tensor_scale: float) -> list[float]:
    grid = values(fmt)
    low, high = min(*block, 0.0), max(*block, 0.0)
    if fmt.scale.name == "e8m0":
        scale = power_of_two(fmt.rule, Fraction(max(-low, high)), Fraction(max(grid)))
    else:
        ratio = (high - low) / (grid[-1] - grid[0]) if fmt.affine else max(-low, high) / max(grid)
        if fmt.scale.name == "e4m3fn":
            scale = reference.round_to(E4M3FN, min(ratio / tensor_scale, 448.0), "ties_to_even")
        else:
            scale = float32(ratio)
    unit = Fraction(scale) * Fraction(tensor_scale)
    if unit == 0:
        return [0.0 for _ in block]
    zero = Fraction(0)
    if fmt.affine:
        zero = min(
            max(Fraction(round(grid[0] - Fraction(low) / unit)), Fraction(grid[0])), Fraction(grid[-1])
        )
    return [float((nearest(grid, Fraction(value) / unit + zero) - zero) * unit) for value in block]


def nearest(grid: Sequence[float], x: Fraction) -> Fraction:
    """Return the nearest value; of two, the one an even number of values away from 0."""
    origin = grid.index(0.0)
    best = min(range(len(grid)), key=lambda code: (abs(Fraction(grid[code]) - x), (code - origin) % 2))
    return Fraction(grid[best])


def power_of_two(rule: str, amax: Fraction, largest: Fraction) -> float:
    """Return the scale in e8m0, by counting."""
    exponent = -127
    if rule == "floor":  # the largest power of two up to amax, over the largest power of two up to `largest`
        emax = max(e for e in range(-10, 20) if Fraction(2) ** e <= largest)
        while exponent < 127 and Fraction(2) ** (exponent + 1 + emax) <= amax:
            exponent += 1
    else:
        while exponent < 127 and Fraction(2) ** exponent * largest < amax:
            exponent += 1
    return 2.0**exponent


def float32(x: float) -> float:
    """Return the nearest float32, by its definition; for normal numbers."""
    if x == 0:
        return 0.0
    ulp = Fraction(2) ** (max(math.frexp(x)[1], -125) - 24)
    return float(round(Fraction(x) / ulp) * ulp)
