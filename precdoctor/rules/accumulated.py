"""How rules read the evidence of sums, averages and counters: shared by PD106, PD205, PD304, PD305 and
PD505.
"""

from __future__ import annotations

import math

from precdoctor.evidence import Accumulation, Evidence, Place
from precdoctor.formats import Format
from precdoctor.rules.finding import Location, Subject
from precdoctor.rules.reading import FLOAT32_BITS, format_named, locations
from precdoctor.rules.wording import at, count, several


def low_format(record: Accumulation) -> Format | None:
    """Return the format of what is added to, if it is below float32 and what rounding loses is not kept."""
    fmt = format_named(record.format)
    return fmt if fmt is not None and fmt.bits < FLOAT32_BITS and not record.compensated else None


def is_weight_decay(record: Accumulation) -> bool:
    """Tell whether trained parameters are scaled down, by the program's own line."""
    return record.kind == "average" and record.only_scaled and record.trained


def origin_of(evidence: Evidence, record: Accumulation) -> Place | None:
    """Return the line that gave it its format: that of the default one, where none was named."""
    if record.default_format and evidence.low_default is not None:
        return evidence.low_default
    return record.origin


def accumulation_locations(evidence: Evidence, record: Accumulation) -> tuple[Location, ...]:
    """Return the lines that gave the format and made the tensor (causes), and those that add and read
    (sites).

    Where neither was seen, the line that adds is the one to change.
    """
    causes = [origin_of(evidence, record), record.made]
    if not any(causes):
        causes = [record.place]
    return locations(causes, [record.place, record.read_at])


def accumulation_subjects(record: Accumulation, kind: str = "buffer") -> tuple[Subject, ...]:
    """Return the tensors by name, where they have one, and the function that adds."""
    named = tuple(Subject(kind=kind, name=name) for name in record.names)  # type: ignore[arg-type]
    place = record.place
    where = f"{place.file}:{place.line}" if place is not None else record.kind
    function = "" if record.function.startswith("<") else record.function
    if function or not named:
        return (*named, Subject(kind="op", name=function or where))
    return named


def arrival(record: Accumulation, fmt: Format) -> dict[str, float | int | str | None]:
    """Return how much of the updates arrived, and what the format can hold, as measured values."""
    return {
        "format": record.format,
        "edq": record.edq,
        "edq_low": record.edq_low,
        "edq_high": record.edq_high,
        "lost_share": record.lost_share,
        "half_ulp_share_min": fmt.eps / 4,
        "half_ulp_share_max": fmt.eps / 2,
    }


def who(record: Accumulation, noun: str) -> str:
    """Return what is added to, in words: "ema.weight", "3 averages (a, b and c)", "the sum at a.py:34"."""
    if len(record.names) == 1:
        return f"{noun} {record.names[0]}"
    if record.names:
        return f"{count(len(record.names), noun)} ({several(record.names)})"
    what = f"the {noun}" if record.tensors == 1 else count(record.tensors, noun)
    return what + at(record.place)


def stands_at(fmt: Format, increment: float) -> float:
    """Return the power of two from which additions of that size are lost: half an ulp is as large."""
    return math.ldexp(1.0, math.ceil(math.log2(abs(increment))) + fmt.precision)
