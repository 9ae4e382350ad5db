"""Tensors that hold every value of a format, or what lies around its values."""

from __future__ import annotations

import torch

from precdoctor.formats import FLOAT64, TF32, Format
from tests.reference import formats as reference

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


def every_value(dtype: torch.dtype) -> torch.Tensor:
    """Return all bit patterns of an 8- or 16-bit dtype; of a wider one a sample with its corners."""
    if dtype.itemsize == 1:
        return torch.arange(256, dtype=torch.uint8).view(dtype)
    if dtype.itemsize == 2:
        return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    limits = torch.iinfo(integer)
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(limits.min, limits.max, (4096,), dtype=integer, generator=generator)
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps
    corners = [
        0.0,
        tiny,
        2 * tiny,
        3 * tiny,
        info.smallest_normal - tiny,
        info.smallest_normal,
        1.0,
        info.max,
    ]
    positive = torch.tensor(
        [*corners, 2 * info.smallest_normal, 3.0, float("inf"), float("nan")], dtype=dtype
    )
    return torch.cat([bits.view(dtype), positive, -positive])


def values_of(fmt: Format) -> torch.Tensor:
    """Return finite values of the format in float32, or float64 for float64: all where they are few."""
    if fmt.name in reference.SMALL:
        positive = torch.tensor(reference.magnitudes(fmt), dtype=torch.float32)
        return torch.cat([positive, -positive])
    x = every_value(torch.float64 if fmt is FLOAT64 else torch.float32)
    if fmt is TF32:
        x = (x.view(torch.int32) & ~0x1FFF).view(torch.float32)
    return x[x.isfinite()]


def assert_identical(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal in every element, zeros in their sign too; NaN equals NaN. The dtypes may differ."""
    actual, expected = actual.double(), expected.double()
    different = ~(
        (actual == expected) & (actual.signbit() == expected.signbit()) | (actual.isnan() & expected.isnan())
    )
    assert not different.any(), (actual[different][:4], expected[different][:4])
