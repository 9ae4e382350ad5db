"""What a trial measures besides evidence: bytes and time."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from precdoctor.treat.gauges import Clock, Memory


def trained(memory: Memory, optimizer: torch.optim.Optimizer, steps: int, held_bytes: int = 0) -> None:
    for _ in range(steps):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
        memory.step_ended(optimizer, lambda: held_bytes)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_counts_weights_gradients_and_both_moments(dtype: torch.dtype, size: int) -> None:
    model = nn.Linear(64, 64, bias=False, dtype=dtype)
    memory = Memory()
    trained(memory, torch.optim.AdamW(model.parameters(), fused=False), 4)
    assert memory.bytes_per_parameter == pytest.approx(4 * size, rel=0.01)  # and a step counter
    assert memory.elements == 64 * 64


def test_counts_tied_weights_once_and_what_a_treatment_keeps() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    memory = Memory()
    trained(memory, torch.optim.SGD(model.parameters(), lr=0.1), 2, held_bytes=128)
    assert memory.bytes_per_parameter == (2 * 4 * 64 + 128) / 64


def test_a_model_that_no_optimizer_steps_does_not_count() -> None:
    model, bystander = nn.Linear(8, 8, bias=False), nn.Linear(32, 32)
    memory = Memory()
    trained(memory, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    assert memory.elements == 64
    assert bystander.weight.grad is None


def test_says_nothing_where_nothing_was_counted() -> None:
    assert Memory().bytes_per_parameter is None
    assert Clock().step_seconds is None


def test_the_time_of_a_step_leaves_observing_out() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    other = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    clock = Clock()
    inner = clock.around(lambda: time.sleep(0.01))
    observe = clock.around(inner)  # what is nested counts once
    for _ in range(4):
        clock.step_ended(optimizer)
        clock.step_ended(other)
        observe()
        time.sleep(0.002)
    assert clock.observing >= 0.04
    assert clock.step_seconds is not None
    assert 0.002 <= clock.step_seconds < 0.01
