from __future__ import annotations

import math

import pytest
import torch

from precdoctor.formats import BFLOAT16
from precdoctor.numerics import edq, round_to, sqnr_db
from tests.reference import numerics as reference


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_edq_agrees_with_exact_fractions(dtype: torch.dtype) -> None:
    intended, noise = normal(0, 8, 30).to(dtype), normal(1, 8, 30).to(dtype)
    applied = intended * 0.5 + noise * 0.1
    assert edq(applied, intended).item() == pytest.approx(reference.edq(applied, intended), rel=1e-12)


def test_edq_is_one_as_meant_zero_when_frozen_negative_when_reversed() -> None:
    intended = normal(2, 100)
    assert edq(intended, intended) == 1
    assert edq(torch.zeros(100), intended) == 0
    assert edq(-intended, intended) == -1
    assert edq(torch.zeros(100), torch.zeros(100)).isnan()


def test_edq_neither_underflows_nor_overflows_in_the_dtype_it_is_given() -> None:
    for scale in (1e-30, 1e30):
        assert edq(normal(3, 10) * scale, normal(3, 10) * scale) == 1


def test_edq_of_a_frozen_bfloat16_norm_is_zero_and_of_a_matrix_nearly_one() -> None:
    update = normal(4, 4096).sign() * 3e-4
    for weight, expected in ((torch.ones(4096), 0.0), (round_to(normal(5, 4096) * 0.02, BFLOAT16), 0.96)):
        applied = round_to(weight + update, BFLOAT16) - weight
        assert edq(applied, update).item() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sqnr_agrees_with_exact_fractions(dtype: torch.dtype) -> None:
    x = normal(6, 5, 50).to(dtype)
    quantized = round_to(x, BFLOAT16)
    assert sqnr_db(x, quantized).item() == pytest.approx(reference.sqnr_db(x, quantized), rel=1e-12)


def test_sqnr_of_bfloat16_on_gaussian_weights_is_near_its_measured_value() -> None:
    x = normal(7, 2**16) * 0.02
    assert sqnr_db(x, round_to(x, BFLOAT16)).item() == pytest.approx(55.6, abs=0.1)
    assert sqnr_db(x, x) == math.inf
