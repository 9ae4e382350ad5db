"""Choices by values that have lost their digits are compared with those by the exact ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from precdoctor.evidence import Cancellation
from tests.observe.shadow.shadowing import layer, seen

HEAD = layer(3, 1)


def squared(points: Tensor) -> Tensor:
    size = points.square().sum(-1)
    return size[:, None] - 2 * points @ points.T + size


CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "topk": lambda d: d.topk(4, largest=False).indices[:, 1:].reshape(-1),
    "argsort": lambda d: d.argsort(-1)[:, 1:4].reshape(-1),
    "min": lambda d: (d + 1e9 * torch.eye(len(d))).min(1).indices,
    "argmin of all": lambda d: (d + 1e9 * torch.eye(len(d))).argmin() // len(d) + torch.zeros(8, dtype=int),
}


def neighbours(choose: Callable[[Tensor], Tensor], origin: float) -> tuple[Cancellation, ...]:
    """Return what cancels where neighbours among points, ``origin`` metres from zero, are chosen."""
    generator = torch.Generator().manual_seed(0)

    def forward() -> Tensor:
        points = 30 * torch.rand(48, 3, generator=generator)
        return HEAD(points[choose(squared(points + origin))] / 30).sum()

    return seen(forward).cancellations


@pytest.mark.parametrize("name", CHOICES)
def test_neighbours_by_distances_that_have_cancelled(name: str) -> None:
    reached = [dict(site.reached) for site in neighbours(CHOICES[name], 5e5)]
    assert any(where.get("choice") == 3 for where in reached)


@pytest.mark.parametrize("name", CHOICES)
def test_neighbours_by_distances_that_are_sound(name: str) -> None:
    assert not any(dict(site.reached) for site in neighbours(CHOICES[name], 0.0))


def test_a_choice_among_values_that_are_nearly_the_same_is_none() -> None:
    turns = torch.arange(47) * 2 * torch.pi / 47
    ring = torch.stack((turns.cos(), turns.sin(), 0 * turns), 1)
    points = torch.cat((torch.zeros(1, 3), ring)) + 5e3  # all others are one metre from the first

    def forward() -> Tensor:
        chosen = squared(points)[0, 1:].topk(4, largest=False).indices
        return HEAD(ring[chosen]).sum()

    found = seen(forward).cancellations
    assert any(site.error > 0.1 for site in found)
    assert not any(dict(site.reached) for site in found)


def test_the_least_value_is_no_choice_of_one() -> None:
    def forward() -> Tensor:
        points = 30 * torch.rand(48, 3, generator=torch.Generator().manual_seed(0))
        distances = squared(points + 5e5) + 1e9 * torch.eye(48)
        distances.min(1).values.mean()
        return HEAD(points / 30).sum()

    found = seen(forward).cancellations
    assert found
    assert not any(dict(site.reached) for site in found)
