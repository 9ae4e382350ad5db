from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from precdoctor.evidence import Evidence, Place, Scaler
from precdoctor.rules.collapsed_loss_scale import CollapsedLossScale
from tests.rules.build import evidence, parameter

SCALED = Place(file="train.py", line=30)


def run(**changes: Any) -> Evidence:
    values: dict[str, Any] = {
        "enabled": True,
        "scale": 65536.0,
        "first_scale": 65536.0,
        "smallest_scale": 65536.0,
        "updates": 100,
        "recent": 64,
        "scaled_at": SCALED,
    }
    return evidence(parameter(), scalers=(Scaler(**{**values, **changes}),))


def test_a_scaler_that_leaves_out_every_step_is_an_error() -> None:
    given = run(
        scale=2.0**-24, updates=40, skipped=40, recent=40, recent_skipped=40, overflowing=("0.weight",)
    )
    (finding,) = CollapsedLossScale.criterion(given)
    assert finding.severity == "error"
    assert [s.name for s in finding.subjects] == ["0.weight"]
    assert finding.locations[0].place == SCALED
    assert finding.message.startswith("The gradient scaler left out 40 of the last 40 steps")


def test_a_scale_that_came_down_from_a_large_start_is_healthy() -> None:
    trace = ((1, 2.0**20), (2, 2.0**19), (6, 2.0**15))
    given = run(first_scale=2.0**24, scale=2.0**15, skipped=9, trace=trace)
    assert not CollapsedLossScale.criterion(given)


def test_a_long_way_down_that_has_ended_is_healthy() -> None:
    trace = tuple((n, 2.0 ** (24 - n)) for n in range(1, 15))
    assert not CollapsedLossScale.criterion(
        run(
            first_scale=2.0**24,
            scale=2.0**10,
            updates=24,
            skipped=14,
            recent=24,
            trace=trace,
            recent_skipped=12,
        )
    )


def test_a_scale_that_keeps_its_level_by_doubling_and_halving_is_healthy() -> None:
    trace = tuple((n, 2.0**12 if n % 50 else 2.0**11) for n in range(25, 100, 25))
    given = run(first_scale=2.0**24, scale=2.0**11, skipped=15, recent_skipped=2, trace=trace)
    assert not CollapsedLossScale.criterion(given)


def test_a_scale_that_falls_on_and_on_is_a_warning() -> None:
    trace = tuple((10 * n, 65536.0 / 2**n) for n in range(1, 14))
    given = run(scale=8.0, updates=130, skipped=13, recent_skipped=6, trace=trace)
    (finding,) = CollapsedLossScale.criterion(given)
    assert finding.severity == "warning"
    assert "from 65,536 to 8, and goes on falling" in finding.message


@pytest.mark.parametrize(("scale", "ill"), [(1.0, False), (0.5, True)])
def test_a_scale_below_one_makes_gradients_smaller(scale: float, ill: bool) -> None:
    assert bool(CollapsedLossScale.criterion(run(scale=scale, first_scale=8.0, skipped=4))) == ill


def test_a_scale_below_one_that_was_chosen_is_healthy() -> None:
    assert not CollapsedLossScale.criterion(run(scale=0.5, first_scale=0.5))


@pytest.mark.parametrize(("recent", "ill"), [(9, False), (10, True)])
def test_ten_updates_are_enough_to_say_that_training_stands_still(recent: int, ill: bool) -> None:
    given = run(updates=recent, skipped=recent, recent=recent, recent_skipped=recent, scale=2.0**6)
    assert bool(CollapsedLossScale.criterion(given)) == ill


def test_scalers_made_anew_for_each_step_are_one() -> None:
    made = Scaler(
        enabled=True,
        scale=2.0**23,
        first_scale=2.0**24,
        place=SCALED,
        updates=1,
        skipped=1,
        recent=1,
        recent_skipped=1,
    )
    (finding,) = CollapsedLossScale.criterion(evidence(parameter(), scalers=(made,) * 12))
    assert finding.measured["updates"] == 12
    fine = dataclasses.replace(made, skipped=0, recent_skipped=0)
    assert not CollapsedLossScale.criterion(evidence(parameter(), scalers=(made, *(fine,) * 11)))


def test_a_disabled_scaler_has_no_scale() -> None:
    assert not CollapsedLossScale.criterion(run(enabled=False, scale=0.0, skipped=1))
