from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precdoctor.formats import (
    BFLOAT16,
    E2M1,
    E4M3FN,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FORMATS,
    TF32,
    Format,
    Tie,
    by_name,
    half_ulp,
    headroom_bits,
    next_down,
    next_up,
    round_stochastic,
    round_to,
    ulp,
)
from tests.formats.test_format import ML_DTYPES
from tests.reference import formats as reference

TIES: tuple[Tie, ...] = ("ties_to_even", "ties_away", "toward_zero")
small = pytest.mark.parametrize("fmt", [by_name(name) for name in reference.SMALL], ids=lambda fmt: fmt.name)
every = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def same(a: float, b: float) -> bool:
    """Equal with the sign of zero; NaN equals NaN."""
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))


def signed(magnitudes: tuple[float, ...]) -> Iterator[float]:
    for magnitude in magnitudes:
        yield magnitude
        yield -magnitude


@small
def test_every_value_rounds_to_itself(fmt: Format) -> None:
    for value in signed(reference.magnitudes(fmt)):
        for tie in TIES:
            assert same(round_to(fmt, value, tie), value)
        assert same(round_stochastic(fmt, value, 0.0), value)


@small
def test_next_up_and_down_walk_through_every_value(fmt: Format) -> None:
    values = reference.magnitudes(fmt)
    for below, above in pairwise(values):
        assert next_up(fmt, below) == above
        assert same(next_down(fmt, above), below)
        assert same(next_up(fmt, -above), -below)
        between = (below + above) / 2
        assert (next_down(fmt, between), next_up(fmt, between)) == (below, above)
        assert (next_down(fmt, -between), next_up(fmt, -between)) == (-above, -below)
    assert same(next_up(fmt, values[-1]), fmt.overflow)
    assert next_up(fmt, -0.0) == values[1]
    assert next_down(fmt, 0.0) == -values[1]


@small
def test_half_ulp_is_half_the_distance_to_the_neighbour_on_that_side(fmt: Format) -> None:
    for value in signed(reference.magnitudes(fmt)):
        for direction in (-1, 1):
            gap = abs(reference.neighbour(fmt, value, direction) - value)
            assert half_ulp(fmt, value, direction) == gap / 2
        away = 1 if value >= 0 else -1
        assert ulp(fmt, value) == abs(reference.neighbour(fmt, value, away) - value)


@small
@pytest.mark.parametrize("tie", TIES)
def test_rounding_between_and_beyond_values_agrees_with_the_enumeration(fmt: Format, tie: Tie) -> None:
    values = reference.magnitudes(fmt)
    pairs = list(pairwise((*values, values[-1] + (values[-1] - values[-2]))))
    step = (
        31 if fmt.bits == 16 else 1
    )  # odd, so that even and odd significands and all binade edges take part
    for below, above in (*pairs[::step], *pairs[-2:]):
        middle = (below + above) / 2
        for x in (middle, math.nextafter(middle, 0), math.nextafter(middle, math.inf), (below + middle) / 2):
            for value in (x, -x):
                assert same(round_to(fmt, value, tie), reference.round_to(fmt, value, tie)), value
    for value in signed((5e-324, 1e300, math.inf)):
        assert same(round_to(fmt, value, tie), reference.round_to(fmt, value, tie)), value


@small
def test_ties_to_even_agrees_with_the_casts_of_ml_dtypes(fmt: Format) -> None:
    values = np.array(reference.line(fmt))
    middles = (values[:-1] + values[1:]) / 2
    inf = np.float32(np.inf)
    with np.errstate(over="ignore", under="ignore"):
        x = np.concatenate([values, middles, [FLOAT32.max, -FLOAT32.max, inf, -inf]]).astype(np.float32)
        x = np.concatenate([x, np.nextafter(x, -inf), np.nextafter(x, inf)])
        cast = x.astype(ML_DTYPES[fmt.name]).astype(np.float64)
    for value, expected in zip(x.tolist(), cast.tolist(), strict=True):
        assert same(round_to(fmt, value), expected), value


@given(st.floats(allow_nan=False))
def test_float64_to_float32_agrees_with_numpy(x: float) -> None:
    with np.errstate(over="ignore", under="ignore"):
        expected = float(np.float64(x).astype(np.float32))
    assert same(round_to(FLOAT32, x), expected)


@given(floats32)
def test_tf32_drops_thirteen_bits_of_a_float32(x: float) -> None:
    (bits,) = struct.unpack("<I", struct.pack("<f", x))
    bits = (bits + 0x0FFF + (bits >> 13 & 1)) & 0xFFFFE000
    assert same(round_to(TF32, x), struct.unpack("<f", struct.pack("<I", bits))[0])


@given(floats32)
def test_neighbours_in_float32_agree_with_numpy(x: float) -> None:
    with np.errstate(over="ignore", under="ignore"):
        up, down = (np.nextafter(np.float32(x), np.float32(end)) for end in (np.inf, -np.inf))
    assert (next_up(FLOAT32, x), next_down(FLOAT32, x)) == (up, down)
    if abs(x) < FLOAT32.max:  # there, numpy's spacing overflows
        assert ulp(FLOAT32, x) == abs(float(np.spacing(np.float32(x))))
    if np.isfinite(down):
        assert half_ulp(FLOAT32, x, -1) == (x - float(down)) / 2


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float64_agrees_with_the_math_module(x: float) -> None:
    assert round_to(FLOAT64, x) == x
    assert ulp(FLOAT64, x) == math.ulp(x)
    assert next_up(FLOAT64, x) == math.nextafter(x, math.inf)
    assert next_down(FLOAT64, x) == math.nextafter(x, -math.inf)


@every
def test_not_a_number_stays_so_and_has_no_spacing(fmt: Format) -> None:
    for x in (math.nan, math.inf, -math.inf):
        assert math.isnan(ulp(fmt, x))
        assert math.isnan(half_ulp(fmt, x, 1))
        assert math.isnan(headroom_bits(fmt, x, 1.0))
    assert math.isnan(round_to(fmt, math.nan))
    assert math.isnan(next_up(fmt, math.nan))
    assert math.isnan(headroom_bits(fmt, 1.0, math.nan))
    assert next_up(fmt, -math.inf) == -fmt.max
    assert next_up(fmt, math.inf) == math.inf


@every
def test_overflow_is_what_the_format_has_for_it(fmt: Format) -> None:
    beyond = math.inf if fmt is FLOAT64 else 4 * fmt.max
    assert same(round_to(fmt, beyond), fmt.overflow)
    assert round_to(fmt, -beyond, saturate=True) == -fmt.max
    assert round_stochastic(fmt, beyond, 0.9, saturate=True) == fmt.max
    if math.isfinite(beyond):
        assert round_to(fmt, -beyond, "toward_zero") == -fmt.max
    assert same(round_to(fmt, math.inf, "toward_zero"), fmt.overflow)


def test_the_8_and_4_bit_formats_overflow_each_in_its_way() -> None:
    assert round_to(E4M3FN, 464.0) == 448
    assert math.isnan(round_to(E4M3FN, 464.1))
    assert round_to(E2M1, 1e9) == 6
    assert round_to(by_name("e5m2"), 61439.0) == 57344
    assert round_to(by_name("e5m2"), 61440.0) == math.inf


@every
def test_stochastic_rounding_goes_up_as_often_as_the_value_lies_high(fmt: Format) -> None:
    # Evenly spaced u make the mean exact, the rest being a multiple of 1/64 (in float64 there is no rest).
    for foot, eighths in ((1.0, 3), (fmt.max / 4, 5), (0.0, 1)):
        gap = ulp(fmt, round_to(fmt, foot))
        x = round_to(fmt, foot) + gap * eighths / 8
        drawn = [round_stochastic(fmt, -x, draw / 64) for draw in range(64)]
        assert math.fsum(value / 64 for value in drawn) == -x
        assert len(set(drawn)) <= 2


@given(st.floats(min_value=2**-100, max_value=2**100), st.floats(min_value=2**-100, max_value=2**100))
def test_headroom_is_the_logarithm_of_update_over_half_ulp(weight: float, update: float) -> None:
    weight = round_to(BFLOAT16, weight)
    for signed_update in (update, -update):
        expected = math.log2(update / half_ulp(BFLOAT16, weight, signed_update))
        assert headroom_bits(BFLOAT16, weight, signed_update) == pytest.approx(expected, abs=1e-9)


@every
def test_headroom_knows_no_underflow(fmt: Format) -> None:
    assert headroom_bits(fmt, 0.0, fmt.min_subnormal) == 1
    assert headroom_bits(fmt, fmt.min_subnormal, fmt.min_subnormal) == 1
    assert headroom_bits(fmt, 1.0, 0.0) == -math.inf
    assert headroom_bits(fmt, 1.0, -math.inf) == math.inf


def test_bfloat16_at_one_needs_more_to_rise_than_to_fall() -> None:
    assert (next_up(BFLOAT16, 1.0), next_down(BFLOAT16, 1.0)) == (1.0078125, 0.99609375)
    assert half_ulp(BFLOAT16, 1.0, +1) == 2**-8 == 0.00390625
    assert half_ulp(BFLOAT16, 1.0, -1) == 2**-9 == 0.001953125
    assert half_ulp(BFLOAT16, -1.0, +1) == 2**-9
    assert headroom_bits(BFLOAT16, 1.0, -2.9e-4) == pytest.approx(-2.75, abs=0.01)
    assert headroom_bits(BFLOAT16, 1.0, 2.9e-4) == pytest.approx(-3.75, abs=0.01)


def test_hyper_parameters_that_formats_cannot_hold() -> None:
    assert round_to(BFLOAT16, 0.999) == round_to(BFLOAT16, 0.9999) == 1.0
    assert round_to(FLOAT16, 1e-8) == 0.0


def test_counters_stick_where_the_next_integer_is_missing() -> None:
    assert round_to(BFLOAT16, 256.0 + 1) == 256
    assert round_to(BFLOAT16, 255.0 + 1) == 256
    assert round_to(FLOAT16, 2048.0 + 1) == 2048
    assert round_to(FLOAT16, 2047.0 + 1) == 2048
