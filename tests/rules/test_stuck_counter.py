"""PD305 finds counters that stand, and those that will."""

from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Accumulation, Counter, Place
from precdoctor.rules.stuck_counter import StuckCounter
from tests.rules import build

MADE = Place(file="optimizer.py", line=18)


def counter(**changes: Any) -> Counter:
    values: dict[str, Any] = {"optimizer": 0, "key": "step", "format": "bfloat16", "parameters": ("weight",)}
    values |= {"first_step": 1, "first_value": 1.0, "last_step": 1500, "last_value": 256.0}
    values |= {"increment": 1.0, "stands_since": 256, "made": MADE}
    return Counter(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "ended", "severities"),
    [
        ({}, "finished", ["error"]),
        ({"last_step": 258}, "finished", ["warning"]),
        ({"last_value": 50.0, "last_step": 50}, "stopped", ["warning"]),
        ({"last_value": 50.0, "last_step": 50}, "finished", ["note"]),
        ({"last_value": 200.0, "last_step": 200}, "finished", ["warning"]),
        ({"format": "float16", "last_value": 2048.0}, "finished", ["error"]),
        ({"format": "float32"}, "finished", []),
        ({"increment": 0.0}, "finished", []),
        ({"last_value": 1.0}, "stopped", []),
    ],
)
def test_a_counter_of_an_optimizer(changes: dict[str, Any], ended: str, severities: list[str]) -> None:
    evidence = build.evidence(build.parameter(), counters=(counter(**changes),), ended=ended)

    found = StuckCounter.criterion(evidence)

    assert [f.severity for f in found] == severities
    for finding in found:
        assert [place.place for place in finding.locations if place.role == "cause"] == [MADE]


def counting(**changes: Any) -> Accumulation:
    values: dict[str, Any] = {"kind": "sum", "format": "bfloat16", "place": MADE, "counts": True}
    values |= {"value": 256.0, "increment": 1.0, "recent_lost_share": 1.0, "standing": 40.0, "missing": 10.0}
    return Accumulation(**{**values, **changes})


def test_a_counter_elsewhere_is_stuck_when_additions_change_nothing() -> None:
    (finding,) = StuckCounter.criterion(build.evidence(accumulations=(counting(),)))
    assert finding.severity == "error"

    moving = counting(recent_lost_share=0.0, standing=0.0, missing=0.0)
    assert StuckCounter.criterion(build.evidence(accumulations=(moving,))) == []
    assert StuckCounter.criterion(build.evidence(accumulations=(counting(counts=False),))) == []
