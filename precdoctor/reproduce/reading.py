"""Reading reports, and making claims of what stands in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from precdoctor.reproduce.scenario import Claim, Seen

#: steps at the end over which the loss is averaged
LAST = 10


def number(row: Mapping[str, Any], *keys: str) -> float:
    """Return what stands under the keys; NaN, which no claim accepts, where nothing was seen."""
    value: Any = row
    for key in keys:
        value = value.get(key) if value is not None else None
    return math.nan if value is None else float(value)


def edqs(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the effective descent quality of parameters; NaN where it was not seen."""
    return [number(row, "edq") for row in rows]


def shares(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the shares of lost updates in percent."""
    return [100 * number(row, "lost_share") for row in rows]


def magnitudes(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the smallest and the largest magnitude of a weight at the end."""
    return number(row, "weight", "abs_min"), number(row, "weight", "abs_max")


def last_loss(seen: Seen) -> float:
    """Return the mean loss of the last steps, NaN without any."""
    return fmean(seen.losses[-LAST:]) if seen.losses else math.nan


def cause(found: Mapping[str, Any] | None) -> str:
    """Return the line that a finding gives as its cause, the file without its folder."""
    causes = [place for place in found["locations"] if place["role"] == "cause"] if found else []
    return ", ".join(
        f"{Path(place['file']).name}:{place['line']}{'' if place['certain'] else ' (likely)'}"
        for place in causes
    )


def line_of(file: Path, code: str) -> int:
    """Return the number of the line that contains the code."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, start=1) if code in line)


def finding(seen: Seen, rule: str) -> Mapping[str, Any] | None:
    """Return the finding of a rule, None where it found nothing."""
    return next((found for found in seen.report["findings"] if found["rule"] == rule), None)


def named(found: Mapping[str, Any] | None) -> set[str]:
    """Return the names of a finding's subjects."""
    return {subject["name"] for subject in found["subjects"]} if found else set()


def claim(what: str, expected: str, seen: str, *, holds: bool | None = None) -> Claim:
    """Return a claim that holds as told, or when the same was seen as expected."""
    return Claim(what=what, expected=expected, seen=seen, holds=seen == expected if holds is None else holds)


def every(
    what: str,
    expected: str,
    values: list[float],
    accept: Callable[[float], bool],
    form: str = ".3f",
    unit: str = "",
) -> Claim:
    """Return a claim that every value is acceptable, and that there are any."""
    return claim(what, expected, extent(values, form) + unit, holds=bool(values) and all(map(accept, values)))


def sign(seen: Seen, name: str) -> Claim:
    """Return the claim that a vital sign is ok."""
    status = next((row["status"] for row in seen.report["vital_signs"] if row["name"] == name), "missing")
    return claim(f"vital sign: {name}", "ok", status)


def extent(values: list[float], form: str) -> str:
    """Return the smallest and the largest value, or the one value that they share."""
    if not values:
        return "nothing"
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} .. {high}"
