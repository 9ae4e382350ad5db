"""Codebooks: the few numbers that the codes of a quantized element stand for, before the scale."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from precdoctor.formats.arithmetic import next_up
from precdoctor.formats.format import E2M1, E4M3FN, E5M2, Format


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook:
    """The values of an element; a code is the index of its value, counted from the lowest."""

    #: full name of the element, such as "e2m1"
    name: str
    #: width of one element in bits
    bits: int
    #: every value once (so -0 and 0 share a code), ascending; 0 is one of them
    values: tuple[float, ...]

    @property
    def max(self) -> float:
        """Return the largest magnitude."""
        return max(-self.values[0], self.values[-1])

    @property
    def span(self) -> float:
        """Return the distance from the lowest value to the highest."""
        return self.values[-1] - self.values[0]

    @property
    def zero(self) -> int:
        """Return the code of 0."""
        return self.values.index(0.0)

    @property
    def thresholds(self) -> tuple[tuple[float, bool], ...]:
        """Return what lies half way between neighbouring values, and whether it rounds to the upper one.

        By ties_to_even: the even one of two values is an even number of codes away from 0, which for a
        floating-point element is the one with an even significand.
        """
        return tuple(
            ((below + above) / 2, (code - self.zero) % 2 == 1)
            for code, (below, above) in enumerate(pairwise(self.values))
        )

    @property
    def largest_step(self) -> float:
        """Return the largest distance between neighbouring values."""
        return max(above - below for below, above in pairwise(self.values))


def codebook_of(fmt: Format) -> Codebook:
    """Return the finite values of a small element format."""
    values = [0.0]
    while values[-1] < fmt.max:
        values.append(next_up(fmt, values[-1]))
    return Codebook(name=fmt.name, bits=fmt.bits, values=_signed(values))


def _signed(magnitudes: list[float]) -> tuple[float, ...]:
    """Return the magnitudes, 0 first and ascending, with both signs."""
    return (*(-value for value in reversed(magnitudes[1:])), *magnitudes)


def _whole(bits: int, *, lowest: int) -> Codebook:
    values = range(lowest, 2 ** (bits - 1))
    return Codebook(name=f"int{bits}", bits=bits, values=tuple(map(float, values)))


E2M1_CODES = codebook_of(E2M1)
E4M3FN_CODES = codebook_of(E4M3FN)
E5M2_CODES = codebook_of(E5M2)

#: -7..7, so that the scale serves both signs; an affine format uses all codes
INT4_CODES = _whole(4, lowest=-7)
INT4_AFFINE_CODES = _whole(4, lowest=-8)
INT8_CODES = _whole(8, lowest=-127)
INT8_AFFINE_CODES = _whole(8, lowest=-128)

#: quantiles of a normal distribution with 0 among them (Dettmers et al. 2023, QLoRA, appendix E), as float32
NF4_CODES = Codebook(
    name="nf4",
    bits=4,
    values=(
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)

#: the 4-bit float of bitsandbytes: 12 and 8 where e2m1 has 6 and 4, and one value far below the others
BNB_FP4_CODES = Codebook(
    name="bnb-fp4",
    bits=4,
    values=_signed([magnitude / 12 for magnitude in (0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)]),
)
