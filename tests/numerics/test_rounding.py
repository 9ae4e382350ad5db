from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precdoctor import formats
from precdoctor.formats import BFLOAT16, E4M3FN, FLOAT16, FLOAT32, FLOAT64, FORMATS, Format, Tie
from precdoctor.numerics import format_of, round_stochastic, round_to
from tests.numerics.patterns import DTYPES, assert_identical, every_value, values_of
from tests.reference import formats as reference

TIES: tuple[Tie, ...] = ("ties_to_even", "ties_away", "toward_zero")
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)


def around(fmt: Format) -> torch.Tensor:
    """Return values of the format, the midpoints between them, and what lies just beside both."""
    values = values_of(fmt).double().unique()
    values = torch.cat([values, values[-1:] + (values[-1] - values[-2])])
    x = torch.cat([values, (values[1:] + values[:-1]) / 2])
    corners = torch.tensor([-0.0, 5e-324, 1e300, math.inf, math.nan], dtype=torch.float64)
    infinity = torch.full_like(x, math.inf)
    return torch.cat([x, torch.nextafter(x, infinity), torch.nextafter(x, -infinity), corners, -corners])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_pattern_of_a_dtype_rounds_to_itself_in_its_format(dtype: torch.dtype) -> None:
    x = every_value(dtype)
    for tie in TIES:
        assert_identical(round_to(x, format_of(dtype), tie), x)
    assert_identical(round_stochastic(x, format_of(dtype)), x)


@every_format
@pytest.mark.parametrize("tie", TIES)
def test_rounding_agrees_with_the_scalar_one(fmt: Format, tie: Tie) -> None:
    x = around(fmt)
    x = x[:: 1 + len(x) // 8_000]
    for saturate in (False, True):
        expected = [formats.round_to(fmt, value, tie, saturate=saturate) for value in x.tolist()]
        actual = round_to(x, fmt, tie, saturate=saturate)
        assert_identical(actual, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("fmt", [FLOAT16, BFLOAT16, formats.E5M2], ids=lambda fmt: fmt.name)
def test_ties_to_even_agrees_with_the_casts_of_torch_from_float32(fmt: Format) -> None:
    dtype = next(dtype for dtype in DTYPES if format_of(dtype) is fmt)
    middles = around(fmt).float()
    x = torch.cat([middles, torch.nextafter(middles, torch.tensor(0.0)), every_value(torch.float32)])
    assert_identical(round_to(x, fmt), x.to(dtype))


def test_e4m3fn_agrees_with_the_cast_of_torch_below_overflow() -> None:
    x = around(E4M3FN).float()
    x = x[x.abs() <= 464]  # beyond, casts saturate or give NaN, as torch and the device like it
    assert_identical(round_to(x, E4M3FN), x.to(torch.float8_e4m3fn))
    assert round_to(torch.tensor([465.0, -math.inf]), E4M3FN).isnan().all()
    assert round_to(torch.tensor([465.0, -math.inf]), E4M3FN, saturate=True).tolist() == [448, -448]


def test_float64_agrees_with_the_cast_to_float32() -> None:
    x = torch.cat([around(FLOAT32), every_value(torch.float64)])
    assert_identical(round_to(x, FLOAT32), x.to(torch.float32))


def test_float64_is_rounded_once_where_two_casts_round_twice() -> None:
    x = torch.tensor([1 + 2**-8 + 2**-40], dtype=torch.float64)  # float32 drops the 2^-40 and makes a tie
    assert x.float().bfloat16().item() == 1
    assert round_to(x, BFLOAT16).item() == 1 + 2**-7


@given(st.floats(width=32), st.sampled_from(FORMATS), st.sampled_from(TIES))
def test_float32_values_round_as_the_scalar_function_says(value: float, fmt: Format, tie: Tie) -> None:
    x = torch.tensor([value], dtype=torch.float32)
    assert_identical(
        round_to(x, fmt, tie), torch.tensor([formats.round_to(fmt, value, tie)], dtype=torch.float64)
    )


@every_format
def test_result_is_in_float32_unless_float64_is_needed(fmt: Format) -> None:
    wide = fmt is FLOAT64
    assert round_to(torch.ones(1, dtype=torch.bfloat16), fmt).dtype == (
        torch.float64 if wide else torch.float32
    )
    assert round_to(torch.ones(1, dtype=torch.float64), fmt).dtype == torch.float64


@pytest.mark.parametrize("name", [*reference.SMALL, "tf32", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stochastic_rounding_has_the_right_mean_and_only_the_two_neighbours(
    name: str, dtype: torch.dtype
) -> None:
    fmt, draws = formats.by_name(name), 2**14
    generator = torch.Generator().manual_seed(5)
    for foot, rest in ((1.0, 0.3), (-2.0, 0.9), (0.0, 0.25), (fmt.min_normal, 0.01)):
        gap = formats.ulp(fmt, foot)
        x = torch.full((draws,), foot, dtype=dtype) + math.copysign(rest * gap, foot)
        p = ((x[0].double() - foot).abs() / gap).item()  # what of `rest` this dtype could hold
        drawn = round_stochastic(x, fmt, generator).double()
        ups = ((drawn - foot).abs() / gap).round()
        assert_identical(drawn.abs(), abs(foot) + ups * gap)
        assert set(ups.tolist()) <= {0.0, 1.0}
        # the number of ups is binomial: five standard deviations, missed once in 1.7 million
        assert abs(ups.mean().item() - p) <= 5 * math.sqrt(p * (1 - p) / draws)


def test_stochastic_rounding_learns_where_ties_to_even_stands_still() -> None:
    generator = torch.Generator().manual_seed(6)
    even = stochastic = torch.ones(4096)
    for _ in range(50):
        even = round_to(even + 3e-4, BFLOAT16)
        stochastic = round_stochastic(stochastic + 3e-4, BFLOAT16, generator)
    assert (even == 1).all()
    # one step has variance p (1-p) ulp^2 with p = 3e-4 / 2^-7; five standard deviations of the mean
    p = 3e-4 * 2**7
    assert abs(stochastic.mean().item() - 1.015) <= 5 * 2**-7 * math.sqrt(50 * p * (1 - p) / 4096)


def test_stochastic_rounding_repeats_with_its_generator_and_spares_the_global_one() -> None:
    x, before = torch.randn(256), torch.get_rng_state()
    first, second = (round_stochastic(x, BFLOAT16, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@every_format
def test_stochastic_rounding_overflows_like_the_others(fmt: Format) -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan, -0.0])
    expected = torch.tensor([fmt.overflow, -fmt.overflow, math.nan, -0.0], dtype=torch.float64)
    assert_identical(round_stochastic(x, fmt), expected)
    assert round_stochastic(x, fmt, saturate=True).double().abs().tolist()[:2] == [fmt.max, fmt.max]
