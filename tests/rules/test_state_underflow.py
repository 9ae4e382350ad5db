"""PD302 finds moments that are stored as zero although gradients go into them."""

from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import State
from precdoctor.rules.state_underflow import StateUnderflow
from tests.rules import build


def state(**changes: Any) -> State:
    values: dict[str, Any] = {"parameter": "weight", "key": "exp_avg_sq", "role": "second moment"}
    return State(**{**values, "format": "float16", "flushed_share": 0.8, **changes})


@pytest.mark.parametrize(
    ("changes", "severities"),
    [
        ({}, ["error"]),
        ({"flushed_share": 0.5}, ["error"]),
        ({"flushed_share": 0.2}, ["warning"]),
        ({"flushed_share": 0.09}, []),
        ({"format": "float32"}, []),
        ({"role": "other", "never_share": 0.9, "never_largest_gradient": 1e-4}, ["error"]),
        ({"role": "other", "never_share": 0.9, "never_largest_gradient": 1.0}, []),
        ({"role": "other", "never_share": 0.9, "never_largest_gradient": 1e-4, "format": "bfloat16"}, []),
    ],
)
def test_the_share_that_is_flushed_decides(changes: dict[str, Any], severities: list[str]) -> None:
    evidence = build.evidence(build.parameter(), states=(state(**changes),))

    assert [f.severity for f in StateUnderflow.criterion(evidence)] == severities
