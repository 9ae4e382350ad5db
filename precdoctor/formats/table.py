"""Tables of the formats, as rows and as text: all of them, their spacing at a value, one in detail."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precdoctor.formats.arithmetic import half_ulp, next_down, next_up, round_to
from precdoctor.formats.format import FLOAT32, FORMATS, Format, by_name

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
    """Return the table of all formats."""
    rows = [(row[0], str(row[1]), str(row[2]), *map(_number, row[3:])) for row in format_rows()]
    return _table(rows, FORMAT_COLUMNS)


def spacing_table(value: float) -> str:
    """Return what each format makes of ``value``: its neighbours, and the updates too small to move it."""
    return _table([(fmt.name, *_spacing_cells(fmt, value)) for fmt in FORMATS], SPACING_COLUMNS)


def describe(name: str) -> str:
    """Return one format in detail; raises `FormatError` for a name that is not in the catalogue."""
    fmt = by_name(name)
    beyond = "saturates" if fmt.overflow == fmt.max else f"gives {fmt.overflow}"
    facts = (
        ("bits", f"{fmt.bits} (1 sign, {fmt.bits - fmt.precision} exponent, {fmt.precision - 1} fraction)"),
        ("precision", f"{fmt.precision} bits, about {math.log10(2) * fmt.precision:.1f} decimal digits"),
        ("eps", f"{_number(fmt.eps)} = 2^{1 - fmt.precision}, the ulp of 1"),
        ("unit roundoff", f"{_number(fmt.unit_roundoff)} = 2^{-fmt.precision}"),
        ("max", f"{_number(fmt.max)}; rounding beyond it {beyond}"),
        ("min normal", f"{_number(fmt.min_normal)} = 2^{fmt.min_exponent}"),
        ("min subnormal", f"{_number(fmt.min_subnormal)} = 2^{fmt.min_exponent - fmt.precision + 1}"),
        ("whole numbers", f"exact up to {2**fmt.precision}; adding 1 to that changes nothing"),
    )
    spacing = _table(
        [(_number(value), *_spacing_cells(fmt, value)) for value in _MAGNITUDES], ("at", *SPACING_COLUMNS[1:])
    )
    return f"{fmt.name}\n\n{_table(facts)}\n\nupdates below the half-ulp do not move a weight:\n\n{spacing}"


def _spacing_cells(fmt: Format, value: float) -> tuple[str, ...]:
    digits = 17 if fmt.precision > FLOAT32.precision else 9  # enough to tell neighbours apart
    _, nearest, below, above, down, up, relative = spacing_row(fmt, value)
    neighbours = (_number(x, digits) for x in (nearest, below, above))
    return *neighbours, *("-" if math.isnan(x) else _number(x, 4) for x in (down, up, relative))


def _table(rows: Sequence[Sequence[str]], columns: Sequence[str] = ()) -> str:
    from tabulate import tabulate

    if not columns:
        return tabulate(rows, tablefmt="plain", disable_numparse=True)
    align = ["left"] + ["right"] * (len(columns) - 1)
    return tabulate(rows, headers=columns, tablefmt="simple", disable_numparse=True, colalign=align)


def _number(value: float, digits: int = 9) -> str:
    return f"{value:.{digits}g}"
