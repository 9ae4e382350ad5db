"""Intervals, against a printed table and by trying them."""

from __future__ import annotations

import math
import random

import pytest

from precdoctor.comparison.statistics import paired, student_t


@pytest.mark.parametrize(
    ("degrees", "point"),
    [(4, 2.776), (5, 2.571), (9, 2.262), (19, 2.093), (29, 2.045), (99, 1.984), (999, 1.962)],
)
def test_student_t_is_that_of_the_table(degrees: int, point: float) -> None:
    assert student_t(degrees) == pytest.approx(point, abs=0.004)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    chance = random.Random(0)
    held = 0
    for _ in range(2000):
        reference = [chance.gauss(3, 1) for _ in range(12)]
        losses = [one + chance.gauss(0.1, 0.05) for one in reference]
        difference = paired(losses, reference)
        held += difference.low <= 0.1 <= difference.high
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_pairing_sees_what_the_losses_themselves_hide() -> None:
    chance = random.Random(1)
    reference = [chance.gauss(3, 1) for _ in range(50)]
    difference = paired([one + 0.01 + chance.gauss(0, 0.005) for one in reference], reference)
    assert difference.is_significant
    assert difference.error < 0.002


def test_what_is_not_finite_is_never_significant() -> None:
    difference = paired([1.0, math.nan, 2.0, 1.0, 1.0, 1.0], [1.0] * 6)
    assert math.isnan(difference.mean)
    assert not difference.is_significant
