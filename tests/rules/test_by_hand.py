"""PD101 and PD102 of weights that a line of the program updates itself."""

from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Accumulation, Place
from precdoctor.rules.frozen_parameter import FrozenParameter
from precdoctor.rules.swallowed_update import SwallowedUpdate
from tests.rules import build

STEP = Place(file="train.py", line=17)


def found(**changes: Any) -> list[tuple[str, str]]:
    values: dict[str, Any] = {"kind": "update", "format": "bfloat16", "place": STEP, "trained": True}
    values |= {"updates": 400, "tensors": 4, "value": 1.5, "increment": -2e-4, "names": ("weight",)}
    values |= {"edq": 0.0, "edq_low": 0.0, "edq_high": 0.01, "lost_share": 0.995}
    seen = build.evidence(accumulations=(Accumulation(**{**values, **changes}),))
    findings = [*FrozenParameter.criterion(seen), *SwallowedUpdate.criterion(seen)]
    for finding in findings:
        assert "updated at train.py:17 without an optimizer" in finding.message
        assert [x.place for x in finding.locations if x.role == "cause"] == [STEP]
    return [(finding.rule, finding.severity) for finding in findings]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("PD101", "error")]),
        ({"edq_high": 0.4, "lost_share": 0.9}, [("PD102", "error")]),
        ({"edq_high": 0.8, "lost_share": 0.7}, [("PD102", "warning")]),
        ({"edq_high": 0.95, "lost_share": 0.7}, []),
    ],
)
def test_what_arrives_decides(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert found(**changes) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "average"},
        {"compensated": True},
        {"format": "float32"},
        {"updates": 20},
        {"increment": -1e-7},
    ],
    ids=["no update", "Kahan", "wide", "a few", "nothing meant"],
)
def test_is_silent_where_it_is_another_matter_or_none(changes: dict[str, Any]) -> None:
    assert found(**changes) == []
