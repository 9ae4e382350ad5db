"""The dtype in which arithmetic about a format is exact, and its exponents as integers.

Exponents are read from the bits: exact everywhere, also where ``floor(log2(x))`` is not (just below
powers of two) and where subnormals are flushed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from precdoctor.formats import FLOAT32, Format


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a dtype keeps its exponent."""

    #: integer dtype of the same width
    integer: torch.dtype
    #: bits of the fraction
    fraction: int
    #: stored exponent of 1.0
    bias: int


_LAYOUTS = {
    torch.float32: Layout(integer=torch.int32, fraction=23, bias=127),
    torch.float64: Layout(integer=torch.int64, fraction=52, bias=1023),
}


def carry(x: torch.Tensor, precision: int) -> tuple[torch.Tensor, Layout]:
    """Return ``x`` in float64 if it is float64 or ``precision`` bits need it, else in float32.

    Exact, since every smaller format is a subset of float32. The result is detached and may share memory.
    """
    wide = x.dtype == torch.float64 or precision > FLOAT32.precision
    dtype = torch.float64 if wide else torch.float32
    return x.detach().to(dtype), _LAYOUTS[dtype]


def exponent_field(
    x: torch.Tensor, layout: Layout, fmt: Format, direction: torch.Tensor | None
) -> torch.Tensor:
    """Return the biased exponent of the binade of ``x``, held within the normal range of the format.

    With a ``direction``, where it leads towards zero: of the binade just below abs(x).
    """
    bits = x.view(layout.integer)
    limits = torch.iinfo(layout.integer)
    magnitude = bits & limits.max
    if direction is not None:
        # -1 where the signs differ: a power of two falls into the binade below; zero becomes -1,
        # whose exponent is clamped like any other below the normal range
        differs = bits ^ direction.view(layout.integer)
        magnitude = differs.bitwise_right_shift_(limits.bits - 1).add_(magnitude)
    field = magnitude.bitwise_right_shift_(layout.fraction)
    return field.clamp_(fmt.min_exponent + layout.bias, fmt.max_exponent + layout.bias)


def power_of_two(field: torch.Tensor, layout: Layout, dtype: torch.dtype) -> torch.Tensor:
    """Return ``2**e`` for the biased exponents of normal numbers; overwrites ``field``."""
    return field.bitwise_left_shift_(layout.fraction).view(dtype)
