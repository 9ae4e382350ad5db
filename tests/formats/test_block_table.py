from __future__ import annotations

import math

import pytest

from precdoctor.formats import BLOCK_FORMATS, BlockFormat, FormatError
from precdoctor.formats.block_table import block_table, fidelity
from precdoctor.formats.table import describe, format_table

every = pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name)


def test_block_formats_have_a_table_below_the_element_formats() -> None:
    assert format_table().endswith(block_table())
    lines = block_table().splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(BLOCK_FORMATS)]] == [
        fmt.name for fmt in BLOCK_FORMATS
    ]
    assert lines[2].split() == ["mxfp4", "e2m1", "32", "e8m0", "floor", "4.25", "18.8", "33.3%"]


@every
def test_describe_tells_elements_block_and_scale(fmt: BlockFormat) -> None:
    text = describe(fmt.name)
    assert text.startswith(f"{fmt.name}\n")
    assert fmt.codebook.name in text
    assert f"{fmt.scale.name}, " in text
    assert ("zero point" in text) == fmt.affine
    assert ("tensor scale" in text) == fmt.has_tensor_scale


def test_describe_writes_out_few_values_and_the_rule_of_the_scale() -> None:
    assert "0, ±0.5, ±1, ±1.5, ±2, ±3, ±4, ±6" in describe("mxfp4")
    assert "2^(floor(log2 amax) - 2): amax lands between 4 and 8" in describe("mxfp4")
    assert "2^ceil(log2(amax / 6)): amax lands between 3 and 6" in describe("mxfp4:ceil")
    assert "253 values from -448 to 448" in describe("mxfp8")
    assert "(max - min) / 15" in describe("int4:64:affine")
    assert "the whole tensor comes back as NaN" in describe("nvfp4")
    assert "its whole block comes back as NaN" in describe("mxfp4")


def test_an_unknown_name_is_answered_with_both_kinds() -> None:
    with pytest.raises(FormatError, match=r"'fp4'.*bfloat16.*nvfp4"):
        describe("fp4")


@every
def test_fidelity_is_worth_about_six_decibels_per_bit(fmt: BlockFormat) -> None:
    kept = fidelity(fmt)
    low, high = (13.5, 21) if fmt.codebook.bits == 4 else (25, 46)
    assert low < kept.sqnr_db < high
    # uniform or not, the mean error is near that of an error of this power
    rms = 0.02 * 10 ** (-kept.sqnr_db / 20)
    assert 0.6 * rms < kept.mean_absolute_error < rms
    assert 0 <= kept.flushed_share < 0.3
    assert math.isfinite(kept.sqnr_db)
