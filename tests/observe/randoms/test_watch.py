"""Coarse random numbers are followed to logarithms and comparisons, and measured there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from precdoctor.doctor import Doctor
from precdoctor.evidence import CoarseUniform
from precdoctor.rules.coarse_random import CoarseRandom

SHAPE, LOW = (256, 256), torch.bfloat16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def seen(act: Callable[[], Any]) -> tuple[tuple[CoarseUniform, ...], bool]:
    """Return what was seen, and whether it is a finding."""
    with Doctor(probe=True) as doctor:
        act()
    evidence = doctor.evidence()
    return evidence.uniforms, bool(CoarseRandom.criterion(evidence))


def gumbel(uniform: Tensor, eps: float = 1e-20) -> Tensor:
    return -torch.log(-torch.log(uniform + eps) + eps)


def test_measures_how_near_the_numbers_come() -> None:
    kept: list[Tensor] = []

    def act() -> Tensor:
        kept.append(torch.rand(SHAPE, dtype=LOW))
        return torch.log1p(-kept[0])

    (item,), ill = seen(act)
    distance = [1 - u for u in kept[0].double().reshape(-1).tolist()]
    nearest = min(d for d in distance if d > 0)
    assert (item.operation, item.drawn, item.nearest) == ("log1p", 65536, nearest)
    assert item.nearest_count == distance.count(nearest)
    assert item.zeros == distance.count(0)
    assert item.expected == pytest.approx(65536 * nearest)
    assert item.distinct == len(set(distance))
    assert ill


@pytest.mark.parametrize(
    ("act", "ill"),
    [
        (lambda: gumbel(torch.rand(SHAPE, dtype=LOW)), True),
        (lambda: gumbel(torch.rand(SHAPE, dtype=LOW).float()), True),
        (lambda: gumbel(torch.rand(SHAPE, dtype=torch.float16)), True),
        (lambda: gumbel(torch.rand_like(torch.zeros(SHAPE, dtype=LOW))), True),
        (lambda: torch.erfinv(2 * torch.empty(SHAPE, dtype=LOW).uniform_().float() - 1), True),
        (lambda: torch.rand(SHAPE, dtype=LOW).sub_(1).neg_().log_(), True),
        (lambda: 1 / (1 - torch.rand(SHAPE, dtype=LOW)), True),
        (lambda: gumbel(torch.rand(SHAPE)), False),
        (lambda: gumbel(torch.rand(SHAPE, dtype=LOW) * 0.5 + 0.25), False),
        (lambda: torch.log(torch.rand(SHAPE, dtype=LOW) + 0.1), False),
        (lambda: 1 / (1 + torch.rand(SHAPE, dtype=LOW)), False),
        (lambda: torch.randn(SHAPE, dtype=LOW).abs().log(), False),
        (lambda: torch.rand(SHAPE, dtype=LOW) * torch.randn(SHAPE), False),
        (lambda: (torch.rand(SHAPE, dtype=LOW) * torch.rand(SHAPE, dtype=LOW)).log(), False),
        (lambda: F.gumbel_softmax(torch.zeros(SHAPE, dtype=LOW)), False),
        (lambda: F.dropout(torch.ones(SHAPE, dtype=LOW), 0.1), False),
    ],
)
def test_a_function_that_needs_the_ends_is_told_from_one_that_does_not(act: Any, ill: bool) -> None:
    assert seen(act)[1] == ill


@pytest.mark.parametrize(
    ("act", "ill"),
    [
        (lambda: torch.rand(SHAPE, dtype=LOW) < 0.9, False),
        (lambda: torch.rand(SHAPE, dtype=LOW) < 0.999, True),
        (lambda: torch.rand(SHAPE, dtype=LOW) > 0.999, True),
        (lambda: torch.full(SHAPE, 0.999) > torch.rand(SHAPE, dtype=LOW), True),
        (lambda: torch.rand(SHAPE, dtype=LOW) < torch.full(SHAPE, 0.999), True),
        (lambda: torch.rand(SHAPE, dtype=LOW) < torch.full(SHAPE, 0.5), False),
        (lambda: (0.9 + torch.rand(SHAPE, dtype=LOW)).floor(), False),
        (lambda: (0.999 + torch.rand(SHAPE, dtype=LOW)).floor_(), True),
        (lambda: torch.rand(SHAPE) < 0.999, False),
        (lambda: torch.rand(SHAPE, dtype=LOW) > 0.0, True),
        (lambda: torch.rand(SHAPE, dtype=LOW).float() <= torch.tensor(0.0), True),
        (lambda: torch.rand(SHAPE, dtype=LOW) >= 0.0, False),
        (lambda: torch.rand(SHAPE, dtype=LOW) < 0.0, False),
        (lambda: torch.rand(SHAPE) > 0.0, False),
        (lambda: torch.rand(8, dtype=LOW) < 0.999, False),
    ],
)
def test_a_probability_that_comes_out_as_another_is_ill(act: Any, ill: bool) -> None:
    assert seen(act)[1] == ill


def test_draws_no_random_number_itself() -> None:
    def act() -> Tensor:
        gumbel(torch.rand(SHAPE, dtype=LOW))
        return torch.rand(4)

    torch.manual_seed(1)
    alone = act()
    torch.manual_seed(1)
    with Doctor(probe=True):
        assert torch.equal(act(), alone)


def cumulated(entries: int, power: float = 0.75) -> Tensor:
    """Return the cumulated distribution of entries whose frequencies fall as in Zipf's law."""
    chances = (torch.arange(entries, dtype=torch.float64) + 20) ** -power
    return (chances.cumsum(0) / chances.sum()).float()


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_counts_the_entries_that_no_number_chooses(low: torch.dtype, right: bool) -> None:
    cdf = cumulated(4000)
    cdf[100] = cdf[99]  # never meant to come
    kept: list[Tensor] = []

    def act() -> Tensor:
        kept.append(torch.rand(64, 64, dtype=low))
        return torch.searchsorted(cdf, kept[0].float(), right=right)

    (item,), ill = seen(act)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(low)
    every = every[(every >= 0) & (every < 1)].double()
    chosen = torch.bincount(torch.searchsorted(cdf.double(), every, right=right), minlength=4001)
    ends = torch.cat((torch.zeros(1), cdf, torch.ones(1))).double()
    chance = ends.diff()
    missed = (chosen == 0) & (chance > 0)
    assert (item.use, item.operation) == ("entry", "searchsorted")
    assert (item.entries, item.unreached) == (int((chance > 0).sum()), int(missed.sum()))
    assert item.expected == pytest.approx(float(chance[missed].sum()) * 4096)
    assert item.observed == 0
    assert ill


def by_count(cdf: Tensor, numbers: Tensor) -> Tensor:
    return torch.zeros(len(cdf) + 1, 2)[(cdf < numbers[..., None]).sum(-1)]


def by_first(cdf: Tensor, numbers: Tensor) -> Tensor:
    return torch.zeros(len(cdf) + 1, 2)[(numbers[..., None] <= cdf).float().argmax(-1).clamp(max=len(cdf))]


def by_row(cdf: Tensor, numbers: Tensor) -> Tensor:
    return torch.searchsorted(cdf.expand(len(numbers), -1).contiguous(), numbers)


def by_total(cdf: Tensor, numbers: Tensor) -> Tensor:
    return torch.bucketize(numbers * 37.0, cdf * 37)


def by_mask(cdf: Tensor, numbers: Tensor) -> Tensor:
    return (numbers[..., None] < cdf).float().mean(-1)


@pytest.mark.parametrize(
    ("low", "entries", "ways", "ill"),
    [
        (torch.bfloat16, 4000, (by_count, by_first, by_row, by_total), True),
        (torch.bfloat16, 200, (by_count, by_first, by_row, by_total), True),
        (torch.bfloat16, 64, (by_count, by_first, by_row, by_total), False),
        (torch.float16, 1000, (by_count, by_first, by_row, by_total), False),
        (torch.float32, 4000, (by_count, by_first, by_row, by_total), False),
        (torch.bfloat16, 4000, (by_mask,), False),
    ],
)
def test_a_table_finer_than_the_numbers_is_ill(low: Any, entries: int, ways: Any, ill: bool) -> None:
    for way in ways:
        cdf = cumulated(entries)
        assert seen(lambda w=way, c=cdf: w(c, torch.rand(256, 64, dtype=low).float()))[1] == ill, way  # type: ignore[misc]


@pytest.mark.parametrize(
    "act",
    [
        lambda u: torch.searchsorted(cumulated(4000), (torch.arange(64.0) + u.float()) / 64),  # stratified
        lambda u: torch.searchsorted(cumulated(4000), u.float().square()),  # not evenly spread
        lambda u: torch.bucketize(u.float(), torch.tensor([0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])),
        lambda u: torch.where(u < 0.5, 0.0, 2.0),
        lambda u: u < torch.linspace(0.1, 0.9, 64),  # a rate for each column
    ],
)
def test_other_uses_of_coarse_numbers_are_healthy(act: Callable[[Tensor], Tensor]) -> None:
    assert not seen(lambda: act(torch.rand(64, 64, dtype=LOW)))[1]


def to_embed(numbers: Tensor, size: int) -> Tensor:
    return F.embedding((numbers * size).long(), torch.zeros(size + 1, 2))


def to_index(numbers: Tensor, size: int) -> Tensor:
    index = (numbers.mul(size)).clamp(0, size - 1).floor().to(torch.int32)
    return torch.zeros(size, 2)[index]


def to_gather(numbers: Tensor, size: int) -> Tensor:
    index = torch.empty(numbers.shape, dtype=torch.long).copy_((size - 1) * numbers.float())
    return torch.zeros(size).gather(0, index.reshape(-1))


def to_select(numbers: Tensor, size: int) -> Tensor:
    index = (numbers * (size - 1)).round().long().clamp(max=size - 1)
    return torch.zeros(size).index_select(0, index.reshape(-1))


def from_1(numbers: Tensor, size: int) -> Tensor:
    numbers = torch.empty_like(numbers).uniform_(1, size)
    return torch.zeros(size + 1)[numbers.long()]


@pytest.mark.parametrize("way", [to_embed, to_index, to_gather, to_select, from_1])
@pytest.mark.parametrize(
    ("low", "size", "ill"),
    [
        (torch.bfloat16, 1000, True),
        (torch.bfloat16, 320, True),
        (torch.bfloat16, 256, False),
        (torch.bfloat16, 10, False),
        (torch.float16, 1000, False),
        (torch.float16, 4000, True),
        (torch.float32, 4000, False),
    ],
)
def test_integers_that_no_number_becomes_are_ill_as_indices(way: Any, low: Any, size: int, ill: bool) -> None:
    assert seen(lambda: way(torch.rand(64, 64, dtype=low), size))[1] == ill


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_counts_the_integers_that_no_number_becomes(low: torch.dtype) -> None:
    size = 5000

    def act() -> Tensor:
        return torch.zeros(size + 1)[(torch.rand(64, 64, dtype=low) * size).long()]

    (item,), _ = seen(act)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(low)
    every = every[(every >= 0) & (every < 1)]
    reached = {int(number * size) for number in every}
    missed = size - len(reached - {size})
    assert (item.use, item.operation, item.entries, item.unreached) == ("entry", "index", size, missed)
    assert item.drawn == 4096
    assert item.expected == pytest.approx(4096 * missed / size)
    assert item.observed == 0


@pytest.mark.parametrize(
    "act",
    [
        lambda u: (u * 1000).long().float().mean(),  # no index
        lambda u: torch.zeros(2)[(u < 0.3).long()],
        lambda u: torch.zeros(2)[u.round().long()],
        lambda u: torch.zeros(1000)[(u.float().square() * 999).long()],  # not evenly spread
        lambda u: torch.zeros(1001)[((torch.arange(64) + u.float()) / 64 * 1000).long()],  # stratified
        lambda u: torch.zeros(1001)[((u.float() + torch.rand(64, 64) / 256) * 996).long()],  # refined
    ],
)
def test_other_integers_are_healthy(act: Callable[[Tensor], Tensor]) -> None:
    assert not seen(lambda: act(torch.rand(64, 64, dtype=LOW)))[1]
