"""What the counter of allocations sees, beside torch's own record of the allocator."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from precdoctor.evaluation import Allocations, storage_bytes


def step(model: nn.Module, x: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_counts_what_exists_and_forgets_what_is_gone() -> None:
    counter = Allocations()
    with counter:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # no storage of its own
        c = a + 1
        assert counter.live_bytes == 8000
        del c
        assert counter.live_bytes == 4000
        assert counter.peak_bytes == 8000
        del a
        assert counter.live_bytes == 4000, "a view keeps the storage"
        del b
    assert counter.live_bytes == 0


def test_a_saved_tensor_exists_without_a_name() -> None:
    x = torch.zeros(1000, requires_grad=True)
    counter = Allocations()
    with counter:
        y = x.exp().sum()
        assert counter.live_bytes == 4000 + 4, "exp keeps its result"
        y.backward()
        assert counter.live_bytes == 4000 + 4, "the gradient now, the result no more"


def test_what_was_there_before_is_not_counted_unless_it_is_added() -> None:
    weight, other = torch.zeros(1000), torch.zeros(10)
    counter = Allocations()
    with counter:
        weight.t().add_(1)
        assert counter.live_bytes == 0
        counter.add([other])
        other.add_(1)
        assert counter.live_bytes == 40


def test_storages_are_counted_once() -> None:
    a = torch.zeros(100)
    assert storage_bytes([a, a[:10], a.view(10, 10), torch.zeros(2, dtype=torch.float64)]) == 416


@pytest.mark.filterwarnings("ignore")
def test_peak_is_that_of_the_allocator() -> None:
    """torch's profiler records every allocation of the CPU allocator, kernels' own included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(128, 64)
    step(model, x, optimizer)  # the state is made
    optimizer.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step(model, x, optimizer)
    optimizer.zero_grad()
    live = peak = 0
    events = recorded.profiler.kineto_results.events()
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    counter = Allocations()
    with counter:
        step(model, x, optimizer)
    assert peak > 500_000
    assert counter.peak_bytes == pytest.approx(peak, rel=0.05)
