from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from precdoctor.formats import BLOCK_FORMATS, BlockFormat
from precdoctor.formats.codebook import BNB_FP4_CODES, Codebook
from tests.reference import quantize as reference

ML_DTYPES = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "int4": ml_dtypes.int4,
    "int8": np.int8,
}
every = pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name)


@every
def test_values_are_those_written_out_and_fit_the_bits(fmt: BlockFormat) -> None:
    codebook = fmt.codebook
    assert list(codebook.values) == reference.values(fmt)
    assert len(codebook.values) <= 2**codebook.bits
    assert codebook.values[codebook.zero] == 0
    assert codebook.max == max(map(abs, codebook.values))
    assert codebook.span == max(codebook.values) - min(codebook.values)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_values_are_all_that_the_patterns_of_the_element_decode_to(name: str) -> None:
    patterns = np.arange(256 if name not in ("e2m1", "int4") else 16, dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        if name == "int4":
            decoded = np.arange(-8, 8).astype(ML_DTYPES[name]).astype(np.float64)
        else:
            decoded = patterns.view(ML_DTYPES[name]).astype(np.float64)
    widest = max(codebooks(name), key=lambda codebook: len(codebook.values))
    assert set(widest.values) == set(decoded[np.isfinite(decoded)].tolist())


@pytest.mark.parametrize("name", ["e2m1", "e4m3fn", "e5m2", "int4"])
def test_thresholds_are_where_the_casts_of_ml_dtypes_change(name: str) -> None:
    for codebook in codebooks(name):
        middles = np.array([middle for middle, _ in codebook.thresholds], dtype=np.float32)
        infinity = np.float32(np.inf)  # from float64, casts would round twice
        for x in (middles, np.nextafter(middles, -infinity), np.nextafter(middles, infinity)):
            rounded = np.rint(x) if name == "int4" else x
            cast = rounded.astype(ML_DTYPES[name]).astype(np.float64)
            upper = np.array([up for _, up in codebook.thresholds])
            codes = np.arange(len(middles)) + ((x > middles) | ((x == middles) & upper))
            np.testing.assert_array_equal(np.array(codebook.values)[codes], cast)


def test_the_float_of_bitsandbytes_is_in_twelfths() -> None:
    twelfths = [round(12 * value, 4) for value in BNB_FP4_CODES.values if value >= 0]
    assert twelfths == [0, 0.0625, 2, 3, 4, 6, 8, 12]


def codebooks(name: str) -> set[Codebook]:
    return {fmt.codebook for fmt in BLOCK_FORMATS if fmt.codebook.name == name}
