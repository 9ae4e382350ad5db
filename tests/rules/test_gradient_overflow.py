"""PD204 finds where gradients become infinite, unless a scaler leaves the step out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from precdoctor.evidence import (
    Attempts,
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
    flow = GradientFlow(passes=9, operations=90, losses=losses, attempts=changes.pop("attempts", Attempts()))
    return dataclasses.replace(build.evidence(parameter, **changes), gradient_flow=flow)


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


@pytest.mark.parametrize(
    ("passes", "scaled", "ill"), [(2, False, 0), (3, False, 1), (3, True, 0), (5, True, 1)]
)
def test_infinite_gradients_that_are_replaced_again_and_again(passes: int, scaled: bool, ill: int) -> None:
    patched = loss(kind="patched", op="aten::where", passes=passes, share=0.3)
    scalers = (Scaler(enabled=True, scale=1024.0),) if scaled else ()

    found = GradientOverflow.criterion(run(loss(backward=True), patched, scalers=scalers))
    assert [f.severity for f in found] == ["warning"] * ill
    assert GradientOverflow.criterion(run(patched, scalers=scalers)) == []  # NaN of another kind


def summed(**changes: Any) -> GradientLoss:
    return loss(**{"op": "aten::add_", "adds_or_casts": True, "largest": 73005.0, "steps": 1, **changes})


def test_a_sum_of_gradients_that_keeps_steps_from_being_made_is_ill() -> None:
    attempts = Attempts(made=20, left_out=5, loss_ratio=0.98)
    (finding,) = GradientOverflow.criterion(run(summed(), attempts=attempts))
    assert finding.severity == "warning"
    assert "5 of 20 steps were left out" in finding.message


@pytest.mark.parametrize(
    "attempts",
    [
        Attempts(made=20, left_out=5, loss_ratio=0.5),  # a scale of the program's own that is halved
        Attempts(made=20, left_out=5, loss_ratio=None),
        Attempts(made=2000, left_out=3, loss_ratio=1.0),
        Attempts(made=20, left_out=0),
    ],
)
def test_a_sum_of_gradients_that_a_scale_sets_right_is_healthy(attempts: Attempts) -> None:
    assert not GradientOverflow.criterion(run(summed(), attempts=attempts))


def test_a_scaler_of_torchs_sets_a_sum_right_and_a_norm_not() -> None:
    scaler = Scaler(enabled=True, scale=1024.0)
    attempts = Attempts(made=20, left_out=5, loss_ratio=0.98)
    assert not GradientOverflow.criterion(run(summed(), attempts=attempts, scalers=(scaler,)))
    assert GradientOverflow.criterion(run(loss(), attempts=attempts, scalers=(scaler,)))


def test_a_sum_of_gradients_that_overflows_before_several_steps_is_ill() -> None:
    assert GradientOverflow.criterion(run(summed(steps=2), attempts=Attempts(made=20)))
    (grave,) = GradientOverflow.criterion(run(summed(), gradient=not_finite()))
    assert grave.severity == "error"


def test_one_line_is_one_finding() -> None:
    assert len(GradientOverflow.criterion(run(loss(op="aten::pow"), loss()))) == 1
