"""What a format does to integers, one at a time, in exact arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

#: significand bits
BITS = {"bfloat16": 8, "float16": 11, "float32": 24}


def rounded(value: int, bits: int) -> int:
    """Return the nearest integer with that many significant bits; ties go to the even significand."""
    size, sign = abs(value), -1 if value < 0 else 1
    excess = max(size.bit_length() - bits, 0)
    quantum = 1 << excess
    whole, rest = divmod(Fraction(size), quantum)
    up = 2 * rest > quantum or (2 * rest == quantum and whole % 2 == 1)
    return sign * (int(whole) + up) * quantum


def loss(values: Sequence[int], format: str) -> tuple[int, int, int, int]:
    """Return different numbers before and after, how many were changed, and the largest error."""
    after = [rounded(value, BITS[format]) for value in values]
    off = [abs(a - v) for a, v in zip(after, values, strict=True)]
    return len(set(values)), len(set(after)), sum(o > 0 for o in off), max(off)
