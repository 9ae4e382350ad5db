"""Element formats: what a floating-point number of so many bits can represent, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass


class FormatError(LookupError):
    """A format that is not in the catalogue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A set of representable numbers: sign, significand of ``precision`` bits, exponent."""

    #: full name, such as "e4m3fn"
    name: str
    #: width of one element in bits, sign included
    bits: int
    #: bits of the significand, the implicit one included
    precision: int
    #: exponent of the smallest normal number
    min_exponent: int
    #: largest finite number
    max: float
    #: has infinities; rounding beyond ``max`` gives one
    has_inf: bool = True
    #: has NaN; a format with neither saturates: rounding beyond ``max`` gives ``max``
    has_nan: bool = True

    @property
    def eps(self) -> float:
        """Return ulp(1), the distance from 1 to the next value up."""
        return math.ldexp(1.0, 1 - self.precision)

    @property
    def unit_roundoff(self) -> float:
        """Return eps/2, the largest relative error of rounding to the nearest normal number."""
        return self.eps / 2

    @property
    def min_normal(self) -> float:
        """Return the smallest positive number of full precision."""
        return math.ldexp(1.0, self.min_exponent)

    @property
    def min_subnormal(self) -> float:
        """Return the smallest positive number."""
        return math.ldexp(1.0, self.min_exponent - self.precision + 1)

    @property
    def max_exponent(self) -> int:
        """Return the exponent of ``max``."""
        return math.frexp(self.max)[1] - 1

    @property
    def overflow(self) -> float:
        """Return what a positive number beyond ``max`` rounds to: inf, NaN or ``max``."""
        return math.inf if self.has_inf else math.nan if self.has_nan else self.max


def _ieee(name: str, bits: int, precision: int) -> Format:
    """Return the format with IEEE 754's layout: the top exponent is kept for inf and NaN."""
    max_exponent = 2 ** (bits - precision - 1) - 1
    largest = math.ldexp(2.0 - math.ldexp(1.0, 1 - precision), max_exponent)
    return Format(name=name, bits=bits, precision=precision, min_exponent=1 - max_exponent, max=largest)


FLOAT64 = _ieee("float64", 64, 53)
FLOAT32 = _ieee("float32", 32, 24)
#: what tensor cores read of a float32: its range, float16's precision
TF32 = _ieee("tf32", 19, 11)
FLOAT16 = _ieee("float16", 16, 11)
BFLOAT16 = _ieee("bfloat16", 16, 8)
#: OCP 8-bit floating point specification 1.0 (2023): one NaN per sign, no infinity
E4M3FN = Format(name="e4m3fn", bits=8, precision=4, min_exponent=-6, max=448.0, has_inf=False)
E5M2 = _ieee("e5m2", 8, 3)
#: the element of MXFP4 and NVFP4 (OCP microscaling formats 1.0, 2023): finite numbers only
E2M1 = Format(name="e2m1", bits=4, precision=2, min_exponent=0, max=6.0, has_inf=False, has_nan=False)

#: every element format, widest first
FORMATS: tuple[Format, ...] = (FLOAT64, FLOAT32, TF32, FLOAT16, BFLOAT16, E4M3FN, E5M2, E2M1)


def by_name(name: str) -> Format:
    """Return the format of that name; raises `FormatError`, which lists the names there are."""
    for fmt in FORMATS:
        if fmt.name == name:
            return fmt
    raise FormatError(f"no format named {name!r}; there are {', '.join(fmt.name for fmt in FORMATS)}")
