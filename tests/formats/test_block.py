from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precdoctor.formats import BLOCK_FORMATS, E8M0, FLOAT32, BlockFormat, FormatError, Grid, block_format
from tests.reference import quantize as reference

every = pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name)
positive = st.floats(min_value=2.0**-149, max_value=FLOAT32.max, width=32)


@every
def test_is_found_by_its_name(fmt: BlockFormat) -> None:
    assert block_format(fmt.name) is fmt
    assert len({other.name for other in BLOCK_FORMATS}) == len(BLOCK_FORMATS)


def test_an_unknown_name_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(FormatError, match=r"'fp4'.*mxfp4.*nvfp4"):
        block_format("fp4")


def test_e8m0_has_the_range_that_ml_dtypes_decodes() -> None:
    decoded = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    finite = decoded[np.isfinite(decoded)]
    assert (E8M0.min_normal, E8M0.max, E8M0.bits) == (finite.min(), finite.max(), 8)
    assert len(finite) == E8M0.max_exponent - E8M0.min_exponent + 1


@given(positive, st.sampled_from(["mxfp4", "mxfp4:ceil", "mxfp8", "mxfp8:e5m2"]))
def test_power_of_two_scales_are_those_found_by_counting(amax: float, name: str) -> None:
    fmt = block_format(name)
    largest = reference.Fraction(fmt.codebook.max)
    scale = fmt.block_scale(amax)
    assert scale == reference.power_of_two(fmt.rule, reference.Fraction(amax), largest)
    if -120 < math.log2(scale) < 120:
        # floor leaves up to the next power of two beyond the largest value's own, ceil nothing
        top = 2.0 ** math.frexp(fmt.codebook.max)[1] if fmt.rule == "floor" else fmt.codebook.max
        assert top / 2 <= amax / scale <= top


@every
def test_a_scale_is_a_value_of_its_format_and_has_none_for_what_is_not_finite(fmt: BlockFormat) -> None:
    for extent in (math.inf, math.nan):
        assert math.isnan(fmt.block_scale(extent))
    assert math.isnan(fmt.block_scale(1.0, math.nan))
    assert fmt.block_scale(0.0) == (E8M0.min_normal if fmt.scale is E8M0 else 0)
    assert 0 < fmt.block_scale(1e30) <= fmt.scale.max


def test_a_tensor_scale_gives_the_largest_block_the_largest_scale() -> None:
    fmt = block_format("nvfp4")
    tensor_scale = fmt.tensor_scale(0.1)
    assert fmt.block_scale(0.1, tensor_scale) == 448
    assert fmt.tensor_scale(0.0) == 1
    assert math.isnan(fmt.tensor_scale(math.inf))
    assert block_format("nvfp4:no-tensor-scale").tensor_scale(0.1) == 1


@pytest.mark.parametrize(
    ("name", "shape", "grid", "size"),
    [
        ("mxfp4", (4, 70), Grid(rows=4, length=70, size=32), 12),
        ("mxfp4", (2, 3, 8), Grid(rows=6, length=8, size=8), 6),
        ("nf4", (4, 70), Grid(rows=1, length=280, size=64), 5),
        ("int8:channel", (4, 2, 3), Grid(rows=4, length=6, size=6), 4),
        ("int8:channel", (7,), Grid(rows=1, length=7, size=7), 1),
        ("int8:tensor", (4, 70), Grid(rows=1, length=280, size=280), 1),
        ("nvfp4", (), Grid(rows=1, length=1, size=1), 1),
        ("nvfp4", (0,), Grid(rows=1, length=0, size=1), 0),
        ("int8:channel", (0, 3), Grid(rows=0, length=3, size=3), 0),
    ],
)
def test_blocks_stay_within_rows_unless_they_are_flat(
    name: str, shape: tuple[int, ...], grid: Grid, size: int
) -> None:
    assert block_format(name).grid(shape) == grid
    assert grid.blocks == size


def test_bytes_count_codes_scales_and_zero_points() -> None:
    shape = (384, 1536)
    count = math.prod(shape)
    expected = {
        "mxfp4": count / 2 + count / 32,
        "nvfp4": count / 2 + count / 16 + 4,
        "nf4": count / 2 + 4 * count / 64,
        "int4:64:affine": count / 2 + 4.5 * count / 64,
        "int8:channel": count + 4 * 384,
        "e4m3fn:tensor": count + 4,
    }
    assert {name: block_format(name).held_bytes(shape) for name in expected} == expected
    assert block_format("mxfp4").bits_per_element(shape) == 4.25
    assert block_format("mxfp4").held_bytes((3,)) == 3  # twelve bits of codes, eight of scale
