from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Bypass, Evidence, Place, Product, Region, Scaler
from precdoctor.rules.bypassed_scaler import BypassedScaler
from tests.rules.build import evidence, parameter

STEP, BACKWARD, MADE = (Place(file="train.py", line=n) for n in (31, 30, 8))
HALF = Product(device="cpu", format="float16", count=10, trained=10)


def run(*bypasses: Bypass, **changes: Any) -> Evidence:
    values: dict[str, Any] = {"enabled": True, "scale": 4096.0, "type": "torch.amp.grad_scaler.GradScaler"}
    scaler = Scaler(**{**values, "place": MADE, "scaled_at": BACKWARD, "bypasses": bypasses, **changes})
    region = Region(device="cpu", format="float16", requested=True, enabled=True, products=(HALF,))
    return evidence(parameter(), scalers=(scaler,), regions=(region,))


def bypass(kind: Any) -> Bypass:
    return Bypass(
        kind=kind, place=STEP, backward=BACKWARD, optimizer="torch.optim.sgd.SGD", seen=3, scale=4096.0
    )


def test_a_step_with_scaled_gradients_is_an_error_at_the_step() -> None:
    (finding,) = BypassedScaler.criterion(run(bypass("scaled gradient")))
    assert finding.severity == "error"
    assert finding.locations[0].place == STEP
    assert finding.locations[0].role == "cause"
    assert "4,096 times too large" in finding.message


def test_an_unscaled_loss_is_an_error_at_its_backward_pass() -> None:
    (finding,) = BypassedScaler.criterion(run(bypass("unscaled loss")))
    assert finding.locations[0].place == BACKWARD
    assert "4,096 times too small" in finding.message


@pytest.mark.parametrize(("requested", "ill"), [(True, True), (False, False)])
def test_a_scaler_that_torch_disabled_is_missed_in_float16(requested: bool, ill: bool) -> None:
    found = BypassedScaler.criterion(run(enabled=False, requested=requested))
    assert [f.severity for f in found] == (["warning"] if ill else [])


def test_a_scaler_used_as_it_should_be_is_healthy() -> None:
    assert not BypassedScaler.criterion(run())
