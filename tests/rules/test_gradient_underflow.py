"""PD203 counts the operations on gradients that lose half of their result in float16."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from precdoctor.evidence import Gradient, GradientFlow, GradientLoss, Place
from precdoctor.rules.gradient_underflow import GradientUnderflow
from tests.rules import build

BACKWARD = Place(file="train.py", line=30)


def loss(**changes: Any) -> GradientLoss:
    values: dict[str, Any] = {"kind": "underflow", "op": "aten::mm", "backward": True, "place": BACKWARD}
    values |= {"seen": 40, "lost": 20, "passes": 8, "largest": 1e-8, "share": 0.9, "projection": 0.1}
    return GradientLoss(**{**values, **changes})


def flow(*losses: GradientLoss, operations: int = 40) -> GradientFlow:
    return GradientFlow(passes=10, operations=operations, losses=losses)


@pytest.mark.parametrize(
    ("found", "severities"),
    [
        (flow(loss()), ["error"]),
        (flow(loss(lost=9)), ["warning"]),
        (flow(loss(passes=4)), []),
        (flow(loss(kind="overflow")), []),
        (flow(), []),
        (flow(loss(backward=False)), ["error"]),
        (flow(loss(backward=False, lost=9)), []),
        (None, []),
    ],
)
def test_how_much_is_lost_and_how_often_decides(found: GradientFlow | None, severities: list[str]) -> None:
    evidence = dataclasses.replace(build.evidence(build.parameter()), gradient_flow=found)

    assert [f.severity for f in GradientUnderflow.criterion(evidence)] == severities


def test_a_gradient_that_is_cut_off_makes_it_grave() -> None:
    dead = build.parameter(gradient=Gradient(format="float16", present=10, all_zero=5))
    evidence = dataclasses.replace(build.evidence(dead), gradient_flow=flow(loss(lost=2)))

    (finding,) = GradientUnderflow.criterion(evidence)

    assert finding.severity == "error"
    assert [s.name for s in finding.subjects] == ["weight"]


def test_a_cast_to_8_bits_is_the_cause_and_no_scaler() -> None:
    cast = Place(file="train.py", line=14)
    copied = loss(op="aten::_to_copy", format="e4m3fn", cast=cast, largest=1e-4)
    evidence = dataclasses.replace(build.evidence(build.parameter()), gradient_flow=flow(copied))

    (finding,) = GradientUnderflow.criterion(evidence)

    assert [(x.role, x.place.line) for x in finding.locations] == [("cause", 14), ("site", 30)]
    assert "casts them without a scale" in finding.message
    assert "smallest positive e4m3fn is 0.00195" in finding.message
    assert "scaled;" not in finding.message
    assert [p.remedy for p in finding.prescriptions] == ["ste"]
