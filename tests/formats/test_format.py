from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from precdoctor import formats
from precdoctor.formats import FORMATS, Format, FormatError, by_name
from tests.reference import formats as reference

ML_DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "e4m3fn": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}


@pytest.mark.parametrize("name", ML_DTYPES)
def test_range_and_eps_agree_with_ml_dtypes(name: str) -> None:
    fmt, info = by_name(name), ml_dtypes.finfo(ML_DTYPES[name])
    assert (fmt.bits, fmt.eps, fmt.max) == (info.bits, float(info.eps), float(info.max))
    assert fmt.min_normal == float(info.smallest_normal)
    assert fmt.min_subnormal == float(info.smallest_subnormal)
    assert fmt.min_exponent == info.minexp


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_range_and_eps_agree_with_torch(name: str) -> None:
    fmt, info = by_name(name), torch.finfo(TORCH_DTYPES[name])
    assert (fmt.bits, fmt.eps, fmt.max, fmt.min_normal) == (
        info.bits,
        info.eps,
        info.max,
        info.smallest_normal,
    )


def test_tf32_has_the_range_of_float32_and_the_precision_of_float16() -> None:
    assert formats.TF32.min_normal == formats.FLOAT32.min_normal
    assert formats.TF32.max == (2 - 2**-10) * 2.0**127
    assert formats.TF32.eps == formats.FLOAT16.eps == 2**-10
    assert formats.TF32.bits == 19


@pytest.mark.parametrize("name", reference.SMALL)
def test_enumeration_from_the_layout_is_what_ml_dtypes_decodes(name: str) -> None:
    fmt, dtype = by_name(name), ML_DTYPES[name]
    patterns = np.arange(2**fmt.bits, dtype=np.uint16 if fmt.bits == 16 else np.uint8)
    with np.errstate(invalid="ignore"):
        decoded = patterns.view(dtype).astype(np.float64)
    positive, negative = np.split(decoded, 2)
    np.testing.assert_array_equal(negative, -positive)
    assert reference.magnitudes(fmt) == tuple(positive[np.isfinite(positive)])
    assert np.isinf(decoded).any() == fmt.has_inf
    assert np.isnan(decoded).any() == fmt.has_nan


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_is_found_by_its_name_and_describes_itself_consistently(fmt: Format) -> None:
    assert by_name(fmt.name) is fmt
    assert fmt.unit_roundoff == fmt.eps / 2
    assert fmt.max < 2.0**fmt.max_exponent * 2
    assert fmt.max >= 2.0**fmt.max_exponent


def test_an_unknown_name_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(FormatError, match=r"'fp8'.*bfloat16.*e4m3fn"):
        by_name("fp8")
