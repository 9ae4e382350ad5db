"""PD304 finds averages that do not follow, by their distance from the exact one."""

from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Accumulation, Place
from precdoctor.rules.frozen_average import FrozenAverage
from precdoctor.rules.stagnant_second_moment import StagnantSecondMoment
from tests.rules import build

ADD = Place(file="ema.py", line=15)


def record(**changes: Any) -> Accumulation:
    values: dict[str, Any] = {"kind": "average", "format": "bfloat16", "place": ADD, "updates": 40}
    values |= {"decay": 0.999, "edq": 0.0, "edq_low": 0.0, "edq_high": 0.01, "lost_share": 0.98}
    values |= {"distance": 0.9, "floor": 0.05, "names": ("ema.weight",)}
    return Accumulation(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "severities"),
    [
        ({}, ["error"]),
        ({"distance": 0.26}, ["error"]),
        ({"distance": 0.2}, ["warning"]),
        ({"distance": 0.09, "floor": 0.02}, []),
        ({"distance": None, "floor": None}, ["error"]),
        ({"distance": None, "floor": None, "decay": 0.9}, []),
        ({"distance": 0.6, "floor": 0.3, "edq_high": 1.1, "lost_share": 0.7}, ["warning"]),
        ({"distance": 0.6, "floor": 0.3, "edq_high": 1.1, "lost_share": 0.7, "decay": 0.9}, []),
        ({"distance": 0.6, "floor": 0.3, "edq_high": 1.1, "lost_share": 0.4}, []),
        ({"distance": 0.2, "floor": 0.3, "edq_high": 1.1, "lost_share": 0.7}, []),
        ({"lost_share": 0.05}, []),
        ({"updates": 2}, []),
        ({"format": "float32"}, []),
        ({"kind": "sum"}, []),
        ({"compensated": True}, []),
        ({"squares": True}, []),
    ],
)
def test_what_it_is_short_of_decides(changes: dict[str, Any], severities: list[str]) -> None:
    found = FrozenAverage.criterion(build.evidence(accumulations=(record(**changes),)))

    assert [f.severity for f in found] == severities


def test_an_average_of_squares_of_gradients_is_a_second_moment() -> None:
    squares = build.evidence(accumulations=(record(squares=True, names=()),))

    (finding,) = StagnantSecondMoment.criterion(squares)

    assert (finding.rule, finding.severity) == ("PD301", "error")
    assert "the second moment at ema.py:15 in bfloat16" in finding.message


def test_averages_of_one_line_are_one_finding() -> None:
    records = (record(), record(names=("ema.bias",), distance=0.2))

    (finding,) = FrozenAverage.criterion(build.evidence(accumulations=records))

    assert finding.severity == "error"
    assert {s.name for s in finding.subjects} == {"ema.weight", "ema.bias"}
