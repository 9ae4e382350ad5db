"""No host sync, and nothing that depends on how the process treats subnormals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from precdoctor import numerics
from precdoctor.formats import BFLOAT16, FLOAT32, FORMATS


@pytest.fixture
def _subnormals_flushed() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    yield
    torch.set_flush_denormal(False)


def test_nothing_reads_a_value_back() -> None:
    with FakeTensorMode():  # raises where python would need to know a value
        x, y = torch.randn(64), torch.randn(64)
        for fmt in FORMATS:
            numerics.ulp(x, fmt), numerics.half_ulp(x, y, fmt), numerics.half_ulp(x, -1, fmt)
            numerics.headroom_bits(x, y, fmt), numerics.round_stochastic(x, fmt)
            for tie in ("ties_to_even", "ties_away", "toward_zero"):
                numerics.round_to(x, fmt, tie)
        numerics.edq(x, y), numerics.sqnr_db(x, y), numerics.binades(x)


@pytest.mark.usefixtures("_subnormals_flushed")
def test_zeros_and_normal_numbers_are_right_where_subnormals_are_flushed() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -1e-37, 3e38])
    for fmt in (BFLOAT16, FLOAT32):
        assert torch.equal(numerics.round_to(x, fmt), x.to(torch.bfloat16).float() if fmt is BFLOAT16 else x)
        assert numerics.round_stochastic(x, fmt).isfinite().all()
        headroom = numerics.headroom_bits(torch.zeros(1), torch.ones(1), fmt)
        assert headroom.item() == 150 if fmt is FLOAT32 else 134
    assert numerics.ulp(torch.tensor([1e-30]), BFLOAT16).item() == 2.0**-107
