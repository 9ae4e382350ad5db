"""Integers that lost digits, made by hand: 768 positions in bfloat16 that go into a sine."""

from __future__ import annotations

from typing import Any

from precdoctor.evidence import Evidence, IntegerUse, LostIntegers, Place
from tests.rules.build import evidence, parameter

CAST, USED = Place(file="train.py", line=13, function="forward"), Place(file="train.py", line=15)


def use(kind: str = "trigonometric", error: float = 2.0) -> IntegerUse:
    return IntegerUse(kind=kind, error=error, place=USED)


def lost(*uses: IntegerUse, **changes: Any) -> LostIntegers:
    values: dict[str, Any] = {
        "how": "cast",
        "before": "int64",
        "format": "bfloat16",
        "place": CAST,
        "module": "rope",
        "sequence": True,
        "times": 3,
        "numbers": 768,
        "distinct_before": 768,
        "distinct_after": 449,
        "changed_share": 0.42,
        "largest": 767.0,
        "error": 2.0,
    }
    return LostIntegers(uses=uses, **{**values, **changes})


def run(item: LostIntegers) -> Evidence:
    return evidence(parameter(), integers=(item,))
