"""Means of paired differences, and how far they can be trusted. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from precdoctor.comparison.result import Difference

#: of two-sided intervals
CONFIDENCE = 0.95
#: below this many samples nothing is called significant: the interval is as wide as one likes
FEWEST = 5


def paired(losses: Sequence[float], reference: Sequence[float]) -> Difference:
    """Return the mean difference of two lists of losses of the same samples, and its interval."""
    steps = [one - other for one, other in zip(losses, reference, strict=True)]
    mean = fmean(steps)
    if not all(map(math.isfinite, steps)):
        return Difference(mean=mean, error=math.nan, low=-math.inf, high=math.inf, samples=len(steps))
    error = standard_error(steps)
    reach = error * student_t(len(steps) - 1) if len(steps) >= FEWEST else math.inf
    return Difference(mean=mean, error=error, low=mean - reach, high=mean + reach, samples=len(steps))


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; NaN of fewer than two, or of what is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return stdev(values) / math.sqrt(len(values))


def student_t(degrees: int) -> float:
    """Return the two-sided 95 % point of Student's t; to 0.1 % from 4 degrees of freedom on.

    By the expansion around the normal distribution (Abramowitz and Stegun 1964, 26.7.5).
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))
