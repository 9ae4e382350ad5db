"""Tables of the element formats, as rows and as text: all of them, their spacing at a value, one in detail.

What the command shows also includes the block formats, from `precdoctor.formats.block_table`.
"""

from __future__ import annotations

import math

from precdoctor.formats import block_table
from precdoctor.formats.arithmetic import half_ulp, next_down, next_up, round_to
from precdoctor.formats.block import BLOCK_FORMATS
from precdoctor.formats.format import FLOAT32, FORMATS, Format, FormatError, by_name
from precdoctor.formats.text import number, table

FORMAT_COLUMNS = ("format", "bits", "precision", "eps", "max", "min normal", "min subnormal")
SPACING_COLUMNS = ("format", "rounded", "next down", "next up", "half-ulp down", "half-ulp up", "relative")

#: typical magnitudes: a norm's weight, a bias, a matrix of std 0.02
_MAGNITUDES = (1.0, 0.1, 0.02)


def format_rows() -> list[tuple[str, int, int, float, float, float, float]]:
    """Return one row of `FORMAT_COLUMNS` per format."""
    return [
        (fmt.name, fmt.bits, fmt.precision, fmt.eps, fmt.max, fmt.min_normal, fmt.min_subnormal)
        for fmt in FORMATS
    ]


def spacing_row(fmt: Format, value: float) -> tuple[str, float, float, float, float, float, float]:
    """Return `SPACING_COLUMNS` for ``value`` rounded to the format by ties_to_even.

    The half-ulps are those of a decrease and an increase; "relative" is the larger over abs(value).
    """
    nearest = round_to(fmt, value)
    down, up = half_ulp(fmt, nearest, -1), half_ulp(fmt, nearest, +1)
    relative = max(down, up) / abs(nearest) if nearest else math.nan
    return fmt.name, nearest, next_down(fmt, nearest), next_up(fmt, nearest), down, up, relative


def format_table() -> str:
    """Return the tables of all element formats and all block formats."""
    rows = [(row[0], str(row[1]), str(row[2]), *map(number, row[3:])) for row in format_rows()]
    return f"{table(rows, FORMAT_COLUMNS)}\n\n{block_table.block_table()}"


def spacing_table(value: float) -> str:
    """Return what each format makes of ``value``: its neighbours, and the updates too small to move it."""
    return table([(fmt.name, *_spacing_cells(fmt, value)) for fmt in FORMATS], SPACING_COLUMNS)


def describe(name: str) -> str:
    """Return one format in detail; raises `FormatError` for a name that is in neither catalogue."""
    if any(name == block.name for block in BLOCK_FORMATS):
        return block_table.describe_block(name)
    try:
        fmt = by_name(name)
    except FormatError as error:
        names = ", ".join(block.name for block in BLOCK_FORMATS)
        raise FormatError(f"{error.args[0]}; with a scale per block {names}") from None
    beyond = "saturates" if fmt.overflow == fmt.max else f"gives {fmt.overflow}"
    facts = (
        ("bits", f"{fmt.bits} (1 sign, {fmt.bits - fmt.precision} exponent, {fmt.precision - 1} fraction)"),
        ("precision", f"{fmt.precision} bits, about {math.log10(2) * fmt.precision:.1f} decimal digits"),
        ("eps", f"{number(fmt.eps)} = 2^{1 - fmt.precision}, the ulp of 1"),
        ("unit roundoff", f"{number(fmt.unit_roundoff)} = 2^{-fmt.precision}"),
        ("max", f"{number(fmt.max)}; rounding beyond it {beyond}"),
        ("min normal", f"{number(fmt.min_normal)} = 2^{fmt.min_exponent}"),
        ("min subnormal", f"{number(fmt.min_subnormal)} = 2^{fmt.min_exponent - fmt.precision + 1}"),
        ("whole numbers", f"exact up to {2**fmt.precision}; adding 1 to that changes nothing"),
    )
    spacing = table(
        [(number(value), *_spacing_cells(fmt, value)) for value in _MAGNITUDES], ("at", *SPACING_COLUMNS[1:])
    )
    return f"{fmt.name}\n\n{table(facts)}\n\nupdates below the half-ulp do not move a weight:\n\n{spacing}"


def _spacing_cells(fmt: Format, value: float) -> tuple[str, ...]:
    digits = 17 if fmt.precision > FLOAT32.precision else 9  # enough to tell neighbours apart
    _, nearest, below, above, down, up, relative = spacing_row(fmt, value)
    neighbours = (number(x, digits) for x in (nearest, below, above))
    return *neighbours, *("-" if math.isnan(x) else number(x, 4) for x in (down, up, relative))
