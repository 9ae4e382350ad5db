"""PD505 counts what is missing of a sum, and leaves counters, averages and wide formats alone."""

from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Accumulation, Place
from precdoctor.rules.swamped_sum import SwampedSum
from tests.rules import build

ADD = Place(file="train.py", line=34)


def record(**changes: Any) -> Accumulation:
    values: dict[str, Any] = {"kind": "sum", "format": "bfloat16", "place": ADD, "updates": 500}
    values |= {"value": 512.0, "increment": 1.0, "missing": 200.0}
    return Accumulation(**{**values, **changes})


@pytest.mark.parametrize(
    ("missing", "severities"), [(200.0, ["error"]), (128.0, ["error"]), (60.0, ["warning"]), (20.0, [])]
)
def test_the_missing_share_decides(missing: float, severities: list[str]) -> None:
    found = SwampedSum.criterion(build.evidence(accumulations=(record(missing=missing),)))

    assert [f.severity for f in found] == severities
    for finding in found:
        assert finding.rule == "PD505"
        assert [place.place for place in finding.locations if place.role == "cause"] == [ADD]


@pytest.mark.parametrize(
    "changes",
    [{"kind": "average"}, {"counts": True}, {"compensated": True}, {"spread": 1e5}],
    ids=["an average", "a counter", "Kahan", "numbers of either sign"],
)
def test_is_silent_where_it_is_another_matter_or_none(changes: dict[str, Any]) -> None:
    assert SwampedSum.criterion(build.evidence(accumulations=(record(**changes),))) == []


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, True),
        ({"missing": -0.04}, True),
        ({"missing": 0.03}, False),  # two ulps at 2.0 are 0.03125
        ({"lost_share": 0.99}, False),
        ({"updates": 7}, False),
    ],
)
def test_what_has_never_moved_is_found_however_little_is_missing(
    changes: dict[str, Any], found: bool
) -> None:
    values = {"value": 2.0, "increment": 0.002, "missing": 0.04, "lost_share": 1.0, "updates": 8, **changes}
    severities = [f.severity for f in SwampedSum.criterion(build.evidence(accumulations=(record(**values),)))]
    assert severities == ["warning"] * found
