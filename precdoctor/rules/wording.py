"""How numbers and names are put into the text of findings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precdoctor.evidence import Place


def number(value: float | None) -> str:
    """Return a number with up to three digits: "1", "0.00195", "2.9e-4"."""
    if value is None:
        return "unknown"
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def percent(share: float) -> str:
    """Return a share (0..1) as percent; 100 % and 0 % are said only when meant."""
    if 0.995 <= share < 1.0 or 0.0 < share < 0.005:
        return f"{100 * share:.2f} %".replace("100.00", "> 99.99").replace("0.00 ", "< 0.01 ")
    return f"{100 * share:.0f} %"


def count(amount: int, noun: str) -> str:
    """Return an amount with its noun: "1 parameter", "9,216 updates"."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def loss_scale(value: float) -> str:
    """Return a loss scale: "65,536", "0.00195"."""
    return f"{value:,.0f}" if math.isfinite(value) and value >= 1 else number(value)


def several(names: Sequence[str], shown: int = 3) -> str:
    """Return names in a row; beyond ``shown`` of them, how many more there are."""
    if len(names) <= shown:
        return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{', '.join(names[:shown])} and {len(names) - shown} more"


def short_type(type_name: str) -> str:
    """Return a class name without its module."""
    return type_name.rpartition(".")[2]


def at(place: Place | None) -> str:
    """Return " at file:line", or nothing for a place that is not known."""
    return f" at {place.file}:{place.line}" if place is not None else ""


def size(amount_bytes: float) -> str:
    """Return an amount of memory: "512 bytes", "18.9 kB", "118 MB" (powers of ten)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount_bytes >= scale:
            return f"{amount_bytes / scale:.3g} {unit}"
    return f"{amount_bytes:.0f} bytes"
