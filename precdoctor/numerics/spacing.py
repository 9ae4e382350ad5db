"""Spacing of a format at the elements of a tensor, and the headroom of updates over it."""

from __future__ import annotations

import math

import torch

from precdoctor.formats import (
    BFLOAT16,
    E4M3FN,
    E5M2,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    Format,
    FormatError,
)
from precdoctor.numerics.carrier import carry, exponent_field, power_of_two

_FORMATS = {
    torch.float64: FLOAT64,
    torch.float32: FLOAT32,
    torch.float16: FLOAT16,
    torch.bfloat16: BFLOAT16,
    torch.float8_e4m3fn: E4M3FN,
    torch.float8_e5m2: E5M2,
}


def format_of(dtype: torch.dtype) -> Format:
    """Return the format of a dtype's elements; raises `FormatError` for one that has none here."""
    try:
        return _FORMATS[dtype]
    except KeyError:
        raise FormatError(f"{dtype} is not one of the formats {', '.join(map(str, _FORMATS))}") from None


def ulp(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Return the spacing of the format in the binade of each element; NaN where not finite.

    In float32, or in float64 if ``x`` or the format is.
    """
    x, layout = carry(x, fmt.precision)
    field = exponent_field(x, layout, fmt, None)
    spacing = power_of_two(field, layout, x.dtype).mul_(math.ldexp(1.0, 1 - fmt.precision))
    return spacing.add_(x, alpha=0)  # 0 * inf and 0 * NaN are NaN


def half_ulp(x: torch.Tensor, direction: torch.Tensor | float, fmt: Format) -> torch.Tensor:
    """Return half the gap beside each element, a value of the format; NaN where not finite.

    ``direction`` counts by its sign: positive where the value increases. At a power of two the gap towards
    zero is half the gap away from it. In float32 for formats below it, else in float64, which alone can
    hold half of float32's smallest subnormal; half of float64's own reads 0.
    """
    x, layout = carry(x, fmt.precision + 1)
    if not isinstance(direction, torch.Tensor):
        direction = torch.full((), direction, device=x.device)
    field = exponent_field(x, layout, fmt, direction.detach().to(x.dtype))
    half = power_of_two(field, layout, x.dtype).mul_(math.ldexp(1.0, -fmt.precision))
    return half.add_(x, alpha=0)


def headroom_bits(weight: torch.Tensor, update: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Return log2(abs(update) / half_ulp(weight)) in bits; -inf for no update, NaN where not finite.

    ``weight`` holds values of the format; half_ulp is taken in the update's direction. Negative means that
    ties_to_even loses the update. In float32, or in float64 if ``update`` is; the quotient is never
    formed, so neither subnormal nor zero weights spoil it.
    """
    weight, layout = carry(weight, fmt.precision)
    update, _ = carry(update, 0)
    field = exponent_field(weight, layout, fmt, update.to(weight.dtype))
    half_exponent = field.to(update.dtype).sub_(layout.bias + fmt.precision)
    return update.abs().log2_().sub_(half_exponent).add_(weight, alpha=0)
