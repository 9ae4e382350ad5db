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
