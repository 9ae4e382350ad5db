from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precdoctor import formats
from precdoctor.formats import (
    BFLOAT16,
    E2M1,
    E4M3FN,
    E5M2,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FORMATS,
    Format,
    FormatError,
)
from precdoctor.numerics import format_of, half_ulp, headroom_bits, ulp
from tests.numerics.patterns import DTYPES, assert_identical, every_value, values_of

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@every_dtype
def test_each_dtype_has_its_format(dtype: torch.dtype) -> None:
    fmt, info = format_of(dtype), torch.finfo(dtype)
    assert (fmt.bits, fmt.eps, fmt.max) == (info.bits, info.eps, info.max)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fnuz])
def test_a_dtype_without_a_format_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(FormatError, match=str(dtype)):
        format_of(dtype)


@every_dtype
def test_ulp_agrees_with_the_scalar_one_for_every_pattern_in_every_format(dtype: torch.dtype) -> None:
    x = every_value(dtype)[:: 5 if dtype.itemsize == 2 else 1]
    for fmt in {format_of(dtype), BFLOAT16, E2M1, FLOAT64}:
        expected = [formats.ulp(fmt, value) for value in x.double().tolist()]
        assert_identical(ulp(x, fmt), torch.tensor(expected, dtype=torch.float64))


@every_format
def test_half_ulp_agrees_with_the_scalar_one_in_both_directions(fmt: Format) -> None:
    x = values_of(fmt)[:: 3 if fmt.bits == 16 else 1]
    for direction in (1, -1, -0.0):
        expected = [formats.half_ulp(fmt, value, direction) for value in x.tolist()]
        assert_identical(half_ulp(x, direction, fmt), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("fmt", [BFLOAT16, FLOAT16, E4M3FN, E5M2], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("sign", [1, -1])
def test_half_ulp_is_where_a_real_addition_begins_to_move_the_weight(fmt: Format, sign: int) -> None:
    dtype = next(dtype for dtype in DTYPES if format_of(dtype) is fmt)
    weight = values_of(fmt).to(dtype)
    if fmt is E4M3FN:  # torch saturates here, so the largest value does not move
        weight = weight[weight.float().abs() < fmt.max]
    half = half_ulp(weight, sign, fmt)
    assert half.dtype == torch.float32
    for factor, moves in ((1 - 2**-8, False), (1 + 2**-8, True)):
        moved = weight.float() + sign * half * factor  # exact in float32: 17 bits
        assert ((moved.to(dtype).float() != weight.float()) == moves).all()


@every_dtype
def test_infinities_and_nan_have_no_spacing_and_no_headroom(dtype: torch.dtype) -> None:
    fmt, x = format_of(dtype), torch.tensor([math.inf, -math.inf, math.nan])
    for result in (ulp(x, fmt), half_ulp(x, 1, fmt), half_ulp(x, -1, fmt), headroom_bits(x, -x.sign(), fmt)):
        assert result.isnan().all()
    assert headroom_bits(torch.ones(1), torch.tensor([math.nan]), fmt).isnan().all()


@every_format
@pytest.mark.parametrize("update_dtype", [torch.float32, torch.float64])
def test_headroom_agrees_with_the_scalar_one(fmt: Format, update_dtype: torch.dtype) -> None:
    weight = values_of(fmt)
    weight = weight[torch.linspace(0, len(weight) - 1, 4096).long()]
    generator = torch.Generator().manual_seed(1)
    update = torch.randn(len(weight), generator=generator, dtype=update_dtype)
    update *= 2.0 ** torch.randint(-60, 60, update.shape, generator=generator)
    pairs = zip(weight.tolist(), update.tolist(), strict=True)
    expected = [formats.headroom_bits(fmt, w, u) for w, u in pairs]
    actual = headroom_bits(weight, update, fmt)
    assert actual.dtype == update_dtype
    tolerance = 1e-9 if update_dtype == torch.float64 else 1e-3  # bits; float64 weights reach 1100
    reference = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double(), reference, rtol=0, atol=tolerance)


def test_headroom_of_zero_weights_is_finite_in_float32() -> None:
    for fmt in (FLOAT32, BFLOAT16, FLOAT16):
        weight, update = torch.tensor([0.0, -0.0, 0.0]), torch.tensor([1e-3, 1e-3, -1e-3])
        expected = math.log2(1e-3) - math.log2(fmt.min_subnormal) + 1
        torch.testing.assert_close(headroom_bits(weight, update, fmt), torch.full((3,), expected))
    assert headroom_bits(torch.zeros(1), torch.zeros(1), BFLOAT16).item() == -math.inf


def test_headroom_does_not_depend_on_the_dtype_that_carries_the_weight() -> None:
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(2)).bfloat16()
    update = torch.randn(1000, generator=torch.Generator().manual_seed(3)) * 1e-3
    for carried in (weight.float(), weight.double()):
        assert_identical(headroom_bits(carried, update, BFLOAT16), headroom_bits(weight, update, BFLOAT16))


def test_bfloat16_norm_at_one_is_frozen_and_the_arithmetic_says_by_how_much() -> None:
    weight, update = torch.ones(2, dtype=torch.bfloat16), torch.tensor([2.9e-4, -2.9e-4])
    assert half_ulp(weight, update, BFLOAT16).tolist() == [0.00390625, 0.001953125]
    assert headroom_bits(weight, update, BFLOAT16).tolist() == pytest.approx([-3.75, -2.75], abs=0.01)
    assert torch.equal((weight + update).bfloat16(), weight)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from([-1.0, 1.0]))
def test_half_ulp_of_float32_is_half_the_way_to_nextafter(value: float, direction: float) -> None:
    x = torch.tensor([value])
    neighbour = torch.nextafter(x, torch.tensor([direction * math.inf]))
    if neighbour.isfinite():
        assert half_ulp(x, direction, FLOAT32).item() == abs(neighbour.double() - x.double()).item() / 2


@given(st.floats(min_value=2**-1020, allow_infinity=False), st.sampled_from([-1.0, 1.0]))
def test_half_ulp_of_float64_is_half_the_way_to_nextafter(value: float, direction: float) -> None:
    neighbour = math.nextafter(value, direction * math.inf)
    if math.isfinite(neighbour):
        x = torch.tensor([value], dtype=torch.float64)
        assert half_ulp(x, direction, FLOAT64).item() == abs(neighbour - value) / 2


def test_spacing_is_unchanged_by_layout_autograd_and_broadcasting() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(4))
    parameter = torch.nn.Parameter(x)
    assert torch.equal(half_ulp(x.t(), -1, BFLOAT16), half_ulp(x, -1, BFLOAT16).t())
    assert torch.equal(half_ulp(parameter, x, BFLOAT16), half_ulp(x, x, BFLOAT16))
    assert not headroom_bits(parameter, parameter, BFLOAT16).requires_grad
    assert torch.equal(half_ulp(x[:, 1], x[0, 1], BFLOAT16), half_ulp(x[:, 1], x[0, 1].item(), BFLOAT16))
    assert half_ulp(x[0, 0], x, BFLOAT16).shape == x.shape


def test_arguments_are_left_as_they_were() -> None:
    weight, update = torch.randn(64), torch.randn(64)
    before = weight.clone(), update.clone()
    ulp(weight, FLOAT32), half_ulp(weight, update, BFLOAT16), headroom_bits(weight, update, BFLOAT16)
    assert torch.equal(weight, before[0])
    assert torch.equal(update, before[1])
