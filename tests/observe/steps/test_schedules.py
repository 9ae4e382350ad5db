"""Learning rates to come, found by stepping copies of the schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from precdoctor.observe.steps.schedules import future


def made(lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=lr)


def test_follows_a_cosine_to_its_end() -> None:
    optimizer = made()
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    optimizer.step()
    scheduler.step()
    ahead = dict(future(optimizer, 1)[0])
    assert ahead[9] == pytest.approx(0.05 * (1 + math.cos(math.pi * 10 / 100)))
    assert scheduler.last_epoch == 1
    assert optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0]


def test_chained_and_sequential_schedulers_are_followed_as_one() -> None:
    optimizer = made()
    warm = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    decay = lr_scheduler.ExponentialLR(optimizer, 0.5)
    scheduler = lr_scheduler.SequentialLR(optimizer, [warm, decay], milestones=[5])
    optimizer.step()
    scheduler.step()
    ahead = dict(future(optimizer, 1)[0])
    for number in range(1, 9):
        scheduler.step()
        assert ahead[number] == pytest.approx(scheduler.get_last_lr()[0])


def test_one_that_moves_once_per_epoch_is_taken_to_go_on_so() -> None:
    optimizer = made()
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step()
    scheduler.step()
    assert future(optimizer, 200)[0][0] == (200, pytest.approx(0.025))


def test_what_cannot_be_foreseen_is_left_out() -> None:
    optimizer = made()
    assert future(optimizer, 5) == {}
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer)
    assert future(optimizer, 5) == {}
    assert scheduler.optimizer is optimizer
    other = made()
    waiting = lr_scheduler.ExponentialLR(other, 0.9)
    assert future(other, 5) == {}
    assert waiting.last_epoch == 0


def test_a_schedule_that_ends_keeps_what_was_found() -> None:
    optimizer = made()
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=20)
    optimizer.step()
    scheduler.step()
    assert future(optimizer, 1)[0][-1][0] == 19
