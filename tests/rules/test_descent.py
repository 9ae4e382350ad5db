from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precdoctor.evidence import Histogram
from precdoctor.formats import BFLOAT16, headroom_bits, round_to
from precdoctor.rules.descent import arithmetic, edq_at, restoring_factor
from precdoctor.rules.reading import merged, stepped
from tests.rules.build import evidence, headroom, lost, norm, parameter, updates


def simulated(updates_over_weight: list[tuple[float, float]]) -> tuple[float, Histogram]:
    """Return the EDQ of single bfloat16 steps, and their energy by headroom, one update at a time."""
    au = uu = 0.0
    bins = [0.0] * 128
    for weight, update in updates_over_weight:
        applied = round_to(BFLOAT16, weight + update) - weight
        au, uu = au + applied * update, uu + update * update
        bins[math.floor((headroom_bits(BFLOAT16, weight, update) + 40) * 2)] += update * update
    return au / uu, Histogram(low=-40, width=0.5, counts=tuple(bins)).trimmed()


@pytest.mark.parametrize("size", [3e-5, 1e-4, 3e-4, 1e-3, 3e-3])
def test_expects_the_edq_that_a_simulation_measures(size: float) -> None:
    draw = random.Random(int(size * 1e7))
    pairs = [(round_to(BFLOAT16, draw.gauss(0, 0.02)), draw.gauss(0, size)) for _ in range(20000)]
    measured, energy = simulated(pairs)
    assert edq_at(energy, 1.0) == pytest.approx(measured, abs=0.03)


@pytest.mark.parametrize("factor", [0.1, 0.3, 3.0, 10.0])
def test_expects_the_edq_after_a_change_of_the_rate(factor: float) -> None:
    draw = random.Random(5)
    pairs = [(round_to(BFLOAT16, draw.gauss(0, 0.02)), draw.gauss(0, 3e-4)) for _ in range(20000)]
    _, energy = simulated(pairs)
    measured, _ = simulated([(weight, update * factor) for weight, update in pairs])
    assert edq_at(energy, factor) == pytest.approx(measured, abs=0.04)


@given(st.floats(-30, 20), st.floats(1e-3, 1e3))
def test_an_update_below_half_an_ulp_is_lost_and_a_large_one_arrives(bits: float, scale: float) -> None:
    low = math.floor(2 * bits) / 2
    expected = edq_at(headroom(bits), scale)
    if low + 0.5 + math.log2(scale) <= 0:
        assert expected == 0
    if low + math.log2(scale) >= 4:
        assert expected == pytest.approx(1.0, abs=0.07)


@pytest.mark.parametrize(("size", "spread"), [(3e-5, 0.0), (3e-4, 0.0), (3e-4, 1.0), (1e-6, 2.0)])
def test_the_factor_is_the_smallest_from_which_the_descent_is_restored(size: float, spread: float) -> None:
    draw = random.Random(3)
    pairs = [(1.0, draw.choice((-1, 1)) * size * 2 ** draw.gauss(0, spread)) for _ in range(4000)]
    _, energy = simulated(pairs)
    factor = restoring_factor(energy)
    assert factor is not None
    assert factor > 1
    for larger in (1.0, 1.1, 1.5, 2.0, 5.0, 100.0):
        assert edq_at(energy, factor * larger) == pytest.approx(1.0, abs=0.101)
    assert abs(1 - edq_at(energy, factor * 0.995)) > 0.0999


def test_the_factor_is_confirmed_by_simulated_steps() -> None:
    draw = random.Random(4)
    pairs = [(round_to(BFLOAT16, draw.gauss(0, 0.02)), draw.gauss(0, 3e-5)) for _ in range(20000)]
    before, energy = simulated(pairs)
    factor = restoring_factor(energy)
    assert factor is not None
    assert before < 0.8
    after, _ = simulated([(weight, update * factor) for weight, update in pairs])
    assert after == pytest.approx(1.0, abs=0.14)
    too_small, _ = simulated([(weight, update * factor / 2) for weight, update in pairs])
    assert abs(1 - too_small) > 0.1


def test_no_factor_is_needed_where_the_descent_arrives() -> None:
    assert restoring_factor(headroom(5.0)) == 1.0
    assert restoring_factor(merged([headroom(-2.7, 1.0), headroom(5.2, 99.0)])) == 1.0
    assert restoring_factor(Histogram(low=0, width=0.5, counts=())) is None


def test_no_updates_are_no_loss() -> None:
    assert edq_at(Histogram(low=0, width=0.5, counts=()), 1.0) == 1.0


def test_adds_histograms_on_one_grid() -> None:
    total = merged([headroom(-2.7), headroom(1.2, 500.0), Histogram(low=0, width=0.5, counts=())])
    assert total.total == 1500
    assert total.low == -3.0
    assert total.quantile(0.1) == pytest.approx(-2.9, abs=0.1)


def test_shows_an_observed_element_near_the_median() -> None:
    numbers = arithmetic(stepped(evidence(norm(), parameter(updates=updates(intended=1)))))
    assert numbers is not None
    assert (numbers.weight, numbers.half_ulp_down, numbers.half_ulp_up) == (1.0, 2**-9, 2**-8)
    assert numbers.headroom_bits == pytest.approx(math.log2(2.9e-4 * 2**9))


def test_makes_up_a_typical_element_where_none_was_kept() -> None:
    numbers = arithmetic(stepped(evidence(norm(updates=lost(example=None)))))
    assert numbers is not None
    assert numbers.headroom_bits == pytest.approx(-2.75, abs=0.26)
    assert numbers.intended == pytest.approx(2**-8 * 2**numbers.headroom_bits)
