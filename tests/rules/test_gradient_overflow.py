"""PD204 finds where gradients become infinite, unless a scaler leaves the step out."""

from __future__ import annotations

import dataclasses
from typing import Any

from precdoctor.evidence import (
    Binades,
    Evidence,
    Gradient,
    GradientFlow,
    GradientLoss,
    Histogram,
    Place,
    Scaler,
)
from precdoctor.rules.gradient_overflow import GradientOverflow
from tests.rules import build

NORM = Place(file="clip.py", line=7)


def loss(**changes: Any) -> GradientLoss:
    values: dict[str, Any] = {"kind": "overflow", "op": "aten::sum", "backward": False, "place": NORM}
    return GradientLoss(**{**values, "seen": 9, "lost": 9, "largest": 800.0, **changes})


def run(*losses: GradientLoss, gradient: Gradient | None = None, **changes: Any) -> Evidence:
    parameter = build.parameter() if gradient is None else build.parameter(gradient=gradient)
    evidence = build.evidence(parameter, **changes)
    return dataclasses.replace(evidence, gradient_flow=GradientFlow(passes=9, operations=90, losses=losses))


def not_finite() -> Gradient:
    empty = Histogram(low=0, width=1, counts=())
    return Gradient(format="float16", present=9, binades=Binades(exponents=empty, non_finite=3))


def test_a_norm_that_is_infinite_is_grave_where_it_wipes_gradients_out() -> None:
    (mild,) = GradientOverflow.criterion(run(loss()))
    (grave,) = GradientOverflow.criterion(
        run(loss(), gradient=Gradient(format="float16", present=9, all_zero=9))
    )

    assert (mild.severity, grave.severity) == ("warning", "error")
    assert [place.place for place in grave.locations if place.role == "cause"] == [NORM]


def test_in_the_backward_pass_a_scaler_leaves_such_steps_out() -> None:
    backward = loss(backward=True)

    (finding,) = GradientOverflow.criterion(run(backward, gradient=not_finite()))
    assert finding.severity == "error"
    scaled = run(backward, gradient=not_finite(), scalers=(Scaler(enabled=True, scale=1024.0),))
    assert GradientOverflow.criterion(scaled) == []
    assert GradientOverflow.criterion(run(backward)) == []


def test_one_line_is_one_finding() -> None:
    assert len(GradientOverflow.criterion(run(loss(op="aten::pow"), loss()))) == 1
