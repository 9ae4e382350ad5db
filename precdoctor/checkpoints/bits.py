"""The bits of floating-point numbers as unsigned integers: how tensors are looked at without decoding them.

Below the sign the patterns of a format are in the order of its values, so the distance of two patterns is
the distance in ulps, and what is not finite lies above all that is.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from precdoctor.formats import Format
from precdoctor.numerics import format_of

Bits = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where sign, exponent and fraction of a format are."""

    dtype: torch.dtype
    format: Format
    #: the unsigned integer of the same width
    unsigned: np.dtype[Any]
    #: all bits but the sign
    magnitude: int
    #: the first pattern that is not finite
    beyond: int
    #: the pattern of infinity; None in a format without one
    infinity: int | None
    #: the pattern of 1.0
    one: int

    @property
    def fraction_bits(self) -> int:
        """Return the number of stored bits of the significand."""
        return self.format.precision - 1

    def decode(self, bits: Bits) -> torch.Tensor:
        """Return the values in float64."""
        return self.tensor(bits).double()

    def tensor(self, bits: Bits) -> torch.Tensor:
        """Return the bits as a tensor of the format; shares their memory."""
        return torch.from_numpy(bits.view(np.uint8)).view(self.dtype)

    def encode(self, values: torch.Tensor) -> Bits:
        """Return values as bits of the format, rounded once by ties_to_even."""
        return of_tensor(values.to(self.dtype), self)


def layout_of(dtype: torch.dtype) -> Layout | None:
    """Return the layout of a dtype; None for one that is no format of numbers with a fraction."""
    if dtype not in _LAYOUTS:
        return None
    return _LAYOUTS[dtype]


def of_tensor(values: torch.Tensor, layout: Layout) -> Bits:
    """Return the bits of a tensor of the format."""
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().view(layout.unsigned)


def magnitudes(bits: Bits, layout: Layout, out: Bits | None = None) -> Bits:
    """Return the bits without the sign."""
    found: Bits = np.bitwise_and(bits, layout.unsigned.type(layout.magnitude), out=out)
    return found


def ulps_between(a: Bits, b: Bits, layout: Layout) -> Bits:
    """Return the distance of two arrays of one format in ulps, as unsigned integers; 0 between -0 and 0.

    What is not finite counts as the pattern that it has.
    """
    first, second = magnitudes(a, layout), magnitudes(b, layout)
    distance: Bits = np.maximum(first, second)
    distance -= np.minimum(first, second)
    # by way of zero: the sum fits, as both leave out the sign
    np.copyto(distance, first + second, where=(a ^ b) > layout.magnitude)
    return distance


_SCRATCH = threading.local()


def scratch(use: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return memory of this thread for one use, the same each time: fresh memory costs more than its use."""
    kept: dict[str, NDArray[np.uint8]] = _SCRATCH.__dict__
    size = math.prod(shape) * dtype.itemsize
    if use not in kept or kept[use].nbytes < size:
        kept[use] = np.empty(size, np.uint8)
    return kept[use][:size].view(dtype).reshape(shape)


class Farthest:
    """Finds the largest distance in ulps, in memory that is used again, in few passes over it."""

    def __init__(self, layout: Layout, part: int) -> None:
        self._layout = layout
        self._work = scratch("distances", (2, part), layout.unsigned)
        self._signed = np.dtype(f"int{layout.format.bits}")

    def __call__(self, a: Bits, b: Bits, first: Bits, second: Bits, *, finite: bool) -> int:
        """Return the largest distance of ``a`` and ``b``, whose magnitudes are ``first`` and ``second``.

        What is not finite is left out: it has no distance. ``finite`` tells that there is no such element.
        """
        if not finite:
            fine = (first < self._layout.beyond) & (second < self._layout.beyond)
            a, b, first, second = a[fine], b[fine], first[fine], second[fine]
            if not len(a):
                return 0
        one, other = self._work[0, : len(a)], self._work[1, : len(a)]
        # magnitudes leave out the sign bit, so their difference fits into the signed integer; where signs
        # differ it is less than the distance, which is the sum of both
        gap = np.subtract(first, second, out=one).view(self._signed)
        farthest = max(int(gap.max()), -int(gap.min()))
        opposite = np.bitwise_xor(a, b, out=one).view(self._signed)
        if int(opposite.min()) >= 0:
            return farthest
        # the shifted sign is all ones where signs differ, and leaves only those sums
        np.right_shift(opposite, self._layout.format.bits - 1, out=opposite)
        np.add(first, second, out=other)
        np.bitwise_and(other, one, out=other)
        return max(farthest, int(other.max()))


def _layout(dtype: torch.dtype) -> Layout:
    fmt = format_of(dtype)
    unsigned = np.dtype(f"uint{fmt.bits}")

    def pattern(value: float) -> int:
        values = torch.tensor([value], dtype=torch.float64).to(dtype)
        return int(values.view(torch.uint8).numpy().view(unsigned)[0])

    beyond = pattern(fmt.max) + 1
    return Layout(
        dtype=dtype,
        format=fmt,
        unsigned=unsigned,
        magnitude=(1 << (fmt.bits - 1)) - 1,
        beyond=beyond,
        infinity=beyond if fmt.has_inf else None,
        one=pattern(1.0),
    )


_LAYOUTS = {
    dtype: _layout(dtype)
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    )
}  # fmt: skip
#: formats that data of a wider one may be in disguise, narrowest last
NARROWER = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
