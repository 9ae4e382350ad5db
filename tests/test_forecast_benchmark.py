"""The forecast of PD105 checked by training on: the benchmark at a small size."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import pytest
import torch

from precdoctor.doctor import Doctor

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def forecasts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import forecast

    return forecast  # type: ignore[no-any-return]


def test_the_independent_measure_agrees_with_the_doctor(forecasts: ModuleType) -> None:
    for name in ("regression", "classification"):
        training = forecasts.TRAININGS[name]
        model, optimizer, loss_of = training.start(0)
        meter = forecasts.Meter(optimizer)
        with Doctor(model, optimizer, every=1, watch=0) as doctor:
            for _ in range(15):
                optimizer.zero_grad()
                loss_of(model).backward()
                meter.step()
        au, uu = torch.stack(meter.products).sum(0)
        seen = {p.name: p.updates.edq[0].edq for p in doctor.evidence().parameters if p.updates is not None}
        assert list(seen) == [name for name, _ in model.named_parameters()]
        assert list(seen.values()) == pytest.approx((au / uu).tolist(), abs=2e-3)


def test_forecasts_what_training_on_then_shows(forecasts: ModuleType) -> None:
    training = dataclasses.replace(forecasts.TRAININGS["classification"], steps=400)
    found = [one for one in forecasts.run(training, 0) if one.asked == 200 and "weight" in one.parameter]
    assert len(found) == 3
    for one in found:
        assert one.error is not None, f"{one.parameter}: {one.forecast} against {one.seen}"
        assert abs(one.error) < 0.15 * training.steps


def test_looks_for_the_step_from_which_it_stays_low(forecasts: ModuleType) -> None:
    edq = torch.ones(100)
    assert forecasts.lasting(edq) is None
    edq[10:20] = 0.1
    assert forecasts.lasting(edq) is None
    edq[60:] = 0.1
    assert forecasts.lasting(edq) == 60 + forecasts.SMOOTH // 2
