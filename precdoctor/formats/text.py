"""How tables of formats are written: columns and numbers."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], columns: Sequence[str] = ()) -> str:
    """Return the rows below their column names; without these, as a list of names and facts."""
    from tabulate import tabulate

    if not columns:
        return tabulate(rows, tablefmt="plain", disable_numparse=True)
    align = ["left"] + ["right"] * (len(columns) - 1)
    return tabulate(rows, headers=columns, tablefmt="simple", disable_numparse=True, colalign=align)


def number(value: float, digits: int = 9) -> str:
    """Return the number in so many significant digits."""
    return f"{value:.{digits}g}"
