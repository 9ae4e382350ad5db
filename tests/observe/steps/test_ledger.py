"""Sums over elements and steps, against slow and obvious ones."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precdoctor.formats import BFLOAT16, FLOAT32
from precdoctor.observe.steps.ledger import Ledger, Segment, ratio_interval
from precdoctor.observe.watch import RUN, Watch, limit_for
from tests.reference import updates as reference


@settings(max_examples=40)
@given(seed=st.integers(0, 2**16), steps=st.integers(1, 40), size=st.integers(1, 40))
def test_edq_equals_the_definition_for_every_window(seed: int, steps: int, size: int) -> None:
    torch.manual_seed(seed)
    ledger = Ledger(
        [Segment(0, size, 1), Segment(size, 2 * size, 1)], BFLOAT16, torch.float32, torch.device("cpu")
    )
    weight = torch.randn(2 * size).bfloat16().float()
    history = []
    for _ in range(steps):
        update = torch.randn(2 * size) * 2.0 ** float(torch.randint(-12, -4, ()))
        after = (weight + update).bfloat16().float()
        ledger.add(weight.clone(), after.clone(), update.double(), 0.0)
        history.append(((after - weight)[size:].tolist(), update[size:].tolist()))
        weight = after
    for found in ledger.edq(1):
        assert found.edq == pytest.approx(reference.edq(history, found.window or steps), rel=1e-3, abs=1e-4)
        assert found.low <= found.edq <= found.high
    lost, intended = reference.lost(history)
    assert int(ledger.lost[size:].sum()) == lost
    assert int(ledger.intended[size:].sum()) == intended
    assert int(ledger.missed.sum()) == 0


def test_headroom_of_the_scenario_is_two_bits_and_a_half_short() -> None:
    ledger = Ledger([Segment(0, 64, 1)], BFLOAT16, torch.float32, torch.device("cpu"))
    ones = torch.ones(64)
    ledger.add(ones, ones, torch.full((64,), -3e-4).double(), 0.0)
    median = ledger.histogram(0, "count").quantile(0.5)
    assert median == pytest.approx(math.log2(3e-4 / 2**-9), abs=0.5)


def test_carried_remainders_are_judged_by_net_displacement() -> None:
    """A compensated sum: each replayed update contains all that was lost before."""
    ledger = Ledger([Segment(0, 8, 1)], BFLOAT16, torch.float32, torch.device("cpu"))
    weight, remainder = torch.ones(8), torch.zeros(8)
    for _ in range(200):
        meant = remainder + 3e-4
        after = (weight + meant).bfloat16().float()
        ledger.add(weight.clone(), after.clone(), meant.double(), 0.0)
        remainder, weight = meant - (after - weight), after
    assert ledger.edq(0)[0].edq < 0.8  # counted step by step the remainder is counted many times
    assert ledger.net_edq(0) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("carries", "edq"), [(True, 1.0), (False, 0.0)])
def test_a_short_travel_is_judged_by_what_rounding_it_once_would_leave(carries: bool, edq: float) -> None:
    """Of travels around half an ulp most round away, whatever carries them."""
    ledger = Ledger([Segment(0, 64, 1)], BFLOAT16, torch.float32, torch.device("cpu"))
    first, weight, remainder = torch.ones(64), torch.ones(64), torch.zeros(64)
    update = torch.tensor([0.45] * 47 + [0.55] * 17) * 2**-7 / 20
    for _ in range(20):
        meant = remainder + update
        after = (weight + meant).bfloat16().float() if carries else weight
        ledger.add(weight.clone(), after.clone(), meant.double(), 0.0)
        remainder, weight = meant - (after - weight), after
    travel = ((weight - first) * 20 * update).sum() / (20 * update).square().sum()
    assert float(travel) < 0.7  # rounding alone leaves no more
    assert ledger.net_edq(0) == pytest.approx(edq, abs=1e-4)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Neighbours that move together: the binomial interval would cover far less."""
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for _ in range(300):
        rows = torch.randn(64, 1, generator=generator).mul_(0.3).add_(0.8).expand(64, RUN).reshape(-1)
        found = ratio_interval(rows, torch.ones(64 * RUN), RUN)
        assert found is not None
        covered += found[1] <= 0.8 <= found[2]
    assert 0.90 <= covered / 300 <= 0.98


def test_positions_of_watched_elements_are_theirs() -> None:
    values = torch.arange(5000.0).view(50, 100)
    watch = Watch.of(5000, 256)
    fetched = watch.view(values).reshape(-1)
    assert watch.count == 256
    assert watch.stride % 2 == 1
    assert [watch.position(i) for i in range(256)] == fetched.tolist()


def test_small_tensors_and_other_layouts_are_watched_as_well() -> None:
    values = torch.arange(24.0).view(4, 6)
    assert Watch.of(24, 64).view(values.T).reshape(-1).tolist() == values.T.reshape(-1).tolist()
    assert Watch.of(24, 0).count == 24


def test_watched_elements_stay_below_their_share_of_memory() -> None:
    numels, sizes = [1_000_000] * 40, [4] * 40
    limit = limit_for(numels, sizes, None, 0.15)
    assert limit * 40 * 250 <= 0.15 * 4 * sum(numels) < 2 * limit * 40 * 250
    assert limit_for(numels, [2] * 40, None, 0.15) < limit
    assert limit_for(numels, sizes, None, 1.0) > limit
    assert limit_for(numels, sizes, 100, 0.15) == 100
    assert limit_for([10**6] * 10_000, [2] * 10_000, None, 0.15) == 64
    assert limit_for([100] * 5, [4] * 5, None, 0.15) >= 100


def foreseen(steps: list[tuple[int, float, float]]) -> Ledger:
    """Return a ledger of weights at 1 after (number, lr, update) at each observed step."""
    ledger = Ledger([Segment(0, 64, 1)], BFLOAT16, torch.float32, torch.device("cpu"))
    ones = torch.ones(64)
    for number, lr, update in steps:
        ledger.add(ones, ones, torch.full((64,), -update).double(), 0.0, lr=lr, number=number)
    return ledger


def test_what_is_foreseen_rests_on_the_latest_steps_whatever_their_rate() -> None:
    # a warm-up whose first updates are as large as the rate, and then a quarter of it
    rates = [(number, 1e-2 * min(number / 50, 1.0)) for number in range(1, 101)]
    found = foreseen([(n, lr, lr if n <= 20 else lr / 4) for n, lr in rates]).histogram(0, "energy per lr")
    # half an ulp below 1 is 2**-9, so a quarter of a rate of 1 is 7 bits above it
    assert found.share_below(6.9) == 0
    assert found.share_below(7.6) > 0.97


def test_a_step_stands_for_those_before_it_that_were_not_observed() -> None:
    dense = [(number, 1e-2, 1e-2) for number in range(1, 11)]
    assert foreseen([*dense, (11, 1e-2, 2.5e-3)]).histogram(0, "energy per lr").share_below(8) < 0.1
    assert foreseen([*dense, (100, 1e-2, 2.5e-3)]).histogram(0, "energy per lr").share_below(8) > 0.99


@pytest.mark.parametrize(("last", "edq"), [(20, 0.5), (100, 0.1)])
def test_edq_is_that_of_the_run_however_many_of_its_steps_are_observed(last: int, edq: float) -> None:
    ledger = Ledger([Segment(0, 8, 1)], BFLOAT16, torch.float32, torch.device("cpu"))
    ones, update = torch.ones(8), torch.full((8,), 2**-7)
    for number in range(1, 11):
        ledger.add(ones, ones + update, update.double(), 0.0, number=number)
    ledger.add(ones, ones, update.double(), 0.0, number=last)  # lost, as in those before it
    assert ledger.edq(0)[0].edq == pytest.approx(edq)
    assert ledger.histogram(0, "energy").total == pytest.approx(last * 8 * 2**-14)


def test_nothing_is_foreseen_from_a_rate_of_zero() -> None:
    assert foreseen([(1, 0.0, 0.0)]).histogram(0, "energy per lr").counts == ()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), steps=st.integers(2, 20))
def test_what_is_left_of_updates_when_the_next_step_begins(seed: int, steps: int) -> None:
    torch.manual_seed(seed)
    ledger = Ledger([Segment(0, 24, 1)], FLOAT32, torch.float32, torch.device("cpu"))
    weight = (torch.randn(24) * 8).round() / 8
    history = []
    for step in range(steps):
        update = torch.randn(24) * 0.05
        if step:
            ledger.add_rewrite(weight - history[-1][1], weight)
        after = weight + update
        ledger.add(weight.clone(), after.clone(), update.double(), 0.0)
        history.append((weight, after, update))
        weight = (after * 8).round() / 8
    share, narrowed, left = ledger.kept(0)

    expected = reference.kept([tuple(t.tolist() for t in row) for row in history])
    assert left is not None
    assert (share, left.edq) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert left.low <= left.edq <= left.high
    moved = [(a != b[0]) & (u != 0) for (_, a, u), b in itertools.pairwise(history)]
    zeros = [m & (b[0] == 0) for m, b in zip(moved, history[1:], strict=True)]
    rewritten, zero = (int(torch.stack(which).sum()) for which in (moved, zeros))
    assert narrowed == pytest.approx(
        1 - zero / max(rewritten, 1) if rewritten else 0.0
    )  # 16 bits hold eighths


def test_values_that_16_bits_do_not_hold_are_not_narrowed() -> None:
    ledger = Ledger([Segment(0, 4, 1)], FLOAT32, torch.float32, torch.device("cpu"))
    ledger.add(torch.zeros(4), torch.ones(4), torch.ones(4).double(), 0.0)
    now = torch.tensor([1.0, 1 + 2**-7, 1 + 2**-10, 1 + 2**-11])  # the first was not written over
    ledger.add_rewrite(now - 1, now)
    assert ledger.kept(0)[:2] == (0.75, pytest.approx(2 / 3))


def test_steps_that_were_not_observed_one_after_the_other_say_nothing_of_what_is_left() -> None:
    ledger = Ledger([Segment(0, 8, 1)], FLOAT32, torch.float32, torch.device("cpu"))
    ledger.add(torch.zeros(8), torch.ones(8), torch.ones(8).double(), 0.0)

    assert ledger.kept(0) == (0.0, 0.0, None)
