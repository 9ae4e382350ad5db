"""The autograd graph below a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from precdoctor.observe.graph import reach, route


def ids(tensors: list[torch.Tensor]) -> set[int]:
    return {id(t) for t in tensors}


def test_reaches_the_leaves_of_the_loss() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    assert ids(reach([(a * 2).sum() + a.detach().sum()]).leaves) == {id(a)}
    assert ids(reach([(a * b).sum()]).leaves) == {id(a), id(b)}


def test_a_loss_made_of_numbers_reaches_only_itself() -> None:
    a = nn.Parameter(torch.ones(3))
    loss = torch.tensor([float(a.detach().sum())], requires_grad=True)
    assert ids(reach([loss.mean()]).leaves) == {id(loss)}


def test_rounding_cuts_the_path_unless_there_is_another() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    found = reach([(a.round() + b).sum()])
    assert ids(found.only_zero) == {id(a)}
    assert found.zero_nodes == {"RoundBackward0"}
    straight_through = b + (b.round() - b).detach()
    assert not reach([straight_through.sum()]).only_zero
    assert not reach([(a.round() + a).sum()]).only_zero


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


@pytest.mark.parametrize(
    ("use", "way", "nodes"),
    [
        (lambda w: w.detach() * 2, "cut", set()),
        (lambda w: w.detach() * 2 + torch.ones(1, requires_grad=True), "cut", set()),
        (lambda w: w.round() * 2, "zero derivative", {"RoundBackward0"}),
        (lambda w: w.round() * w.abs().max(), "scale only", {"RoundBackward0"}),
        (lambda w: w.detach() * w.norm(), "scale only", set()),
        (lambda w: w.detach() * w.abs().amax(1, keepdim=True), "scale only", set()),
        (lambda w: Own.apply(w), "custom function", {"OwnBackward"}),
        (lambda w: Own.apply(w) * w.detach().abs().mean(), "custom function", {"OwnBackward"}),
        (lambda w: w + (w.round() - w).detach(), "open", set()),
        (lambda w: (w / w.abs().max()).t().reshape(-1), "open", set()),
        (lambda w: Own.apply(w) + 0 * w, "open", set()),
        (lambda w: w, "open", set()),
        # rows one by one look like a scale; what gradient arrives tells them apart
        (lambda w: torch.stack([row * 2 for row in w]), "scale only", set()),
    ],
)
def test_tells_the_way_of_the_gradient(use: Callable[[Tensor], Tensor], way: str, nodes: set[str]) -> None:
    weight = nn.Parameter(torch.randn(6, 4))
    assert route(use(weight), weight) == (way, nodes)
