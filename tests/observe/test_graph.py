"""The autograd graph below a loss."""

from __future__ import annotations

import torch
from torch import nn

from precdoctor.observe.graph import reach


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
