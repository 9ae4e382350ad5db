"""PD205 compares summed gradients with the exact sum."""

from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Accumulation, Place
from precdoctor.rules.lossy_accumulation import LossyAccumulation
from tests.rules import build

BACKWARD = Place(file="train.py", line=17)


def record(**changes: Any) -> Accumulation:
    values: dict[str, Any] = {"kind": "gradient", "format": "bfloat16", "place": BACKWARD}
    values |= {"passes": 1024, "error": 0.17, "projection": 0.83, "names": ("weight",)}
    return Accumulation(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "severities"),
    [
        ({}, ["error"]),
        ({"error": 0.1}, ["error"]),
        ({"error": 0.05}, ["warning"]),
        ({"error": 0.019}, []),
        ({"passes": 4}, []),
        ({"format": "float32"}, []),
        ({"kind": "sum"}, []),
        ({"compensated": True}, []),
    ],
)
def test_the_error_of_the_sum_decides(changes: dict[str, Any], severities: list[str]) -> None:
    evidence = build.evidence(build.parameter(), accumulations=(record(**changes),))

    found = LossyAccumulation.criterion(evidence)

    assert [f.severity for f in found] == severities
    for finding in found:
        lines = {place.place for place in finding.locations}
        assert {build.CAST, BACKWARD} <= lines
