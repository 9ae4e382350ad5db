"""Element by element, in exact fractions."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import torch


def edq(applied: torch.Tensor, intended: torch.Tensor) -> float:
    pairs = list(zip(applied.flatten().tolist(), intended.flatten().tolist(), strict=True))
    return float(sum(Fraction(a) * Fraction(i) for a, i in pairs) / sum(Fraction(i) ** 2 for _, i in pairs))


def sqnr_db(x: torch.Tensor, quantized: torch.Tensor) -> float:
    pairs = list(zip(x.flatten().tolist(), quantized.flatten().tolist(), strict=True))
    signal, noise = (
        sum(Fraction(a) ** 2 for a, _ in pairs),
        sum((Fraction(a) - Fraction(q)) ** 2 for a, q in pairs),
    )
    return 10 * math.log10(signal / noise)


def binades(x: torch.Tensor) -> Counter[int | str]:
    counts: Counter[int | str] = Counter()
    for value in x.flatten().tolist():
        if value == 0:
            counts["zero"] += 1
        elif math.isfinite(value):
            counts[math.frexp(value)[1] - 1] += 1
        else:
            counts["not finite"] += 1
    return counts
