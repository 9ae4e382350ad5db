from __future__ import annotations

import pytest

from precdoctor.evidence import Evidence, Gradient, Product, Scaler
from precdoctor.rules.needless_scaler import NeedlessScaler
from tests.rules.build import evidence, parameter


def run(format: str, *, updates: int = 50, enabled: bool = True, weights: str = "float32") -> Evidence:
    scaler = Scaler(enabled=enabled, scale=65536.0, updates=updates, type="torch.amp.grad_scaler.GradScaler")
    weight = parameter(format=weights, gradient=Gradient(format=weights, present=50))
    seen = (Product(device="cpu", format=format, count=10),) if format else ()
    return evidence(weight, scalers=(scaler,), products_outside=seen)


@pytest.mark.parametrize("format", ["bfloat16", "float32"])
def test_a_format_with_the_range_of_float32_needs_no_scaler(format: str) -> None:
    (finding,) = NeedlessScaler.criterion(run(format))
    assert finding.severity == "note"
    assert format in finding.message


def test_float16_needs_one() -> None:
    assert not NeedlessScaler.criterion(run("float16"))
    assert not NeedlessScaler.criterion(run("float32", weights="float16"))


def test_a_scaler_that_is_disabled_or_was_never_used_is_no_matter() -> None:
    assert not NeedlessScaler.criterion(run("bfloat16", enabled=False))
    assert not NeedlessScaler.criterion(run("bfloat16", updates=0))


def test_says_nothing_where_no_product_was_seen() -> None:
    assert not NeedlessScaler.criterion(run(""))
