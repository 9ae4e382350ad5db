"""Optimizers around optimizers: schedules and the bench test belong to the one inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from precdoctor import Doctor
from precdoctor.observe.steps.bench import bench
from precdoctor.observe.steps.schedules import future
from precdoctor.observe.steps.wrapping import inner, keeper
from precdoctor.remedies import Float32State, KahanSummation, MasterWeights, StochasticRounding


class Facade(torch.optim.Optimizer):
    """Holds an optimizer as some training libraries do."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups, self.defaults = (
            optimizer,
            optimizer.param_groups,
            optimizer.defaults,
        )

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def made(dtype: torch.dtype = torch.bfloat16) -> torch.optim.Optimizer:
    return torch.optim.AdamW([nn.Parameter(torch.ones(8, dtype=dtype))], lr=1e-3)


def test_knows_what_is_inside_and_who_keeps_the_results() -> None:
    optimizer = made()
    assert keeper(optimizer) is None
    optimizer.register_step_pre_hook(lambda *_: None)
    assert keeper(optimizer) is None
    wrapped = MasterWeights(optimizer)
    assert keeper(optimizer) is wrapped
    assert inner(Facade(wrapped)) is optimizer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wrap", [KahanSummation, MasterWeights, StochasticRounding])
def test_the_bench_steps_through_the_wrapper(wrap: Any, dtype: torch.dtype) -> None:
    optimizer = made(dtype)
    wrapped = wrap(optimizer)
    result = bench(optimizer, 0, dtype, 1)
    assert result.edq_small == pytest.approx(1, abs=0.1)
    assert result.preserves
    assert result.zero_gradient_finite  # eps is 0 in float16, not in the float32 of the step
    assert wrapped.held_bytes() == 0
    assert not optimizer.state


def test_the_bench_sees_that_float32_state_alone_keeps_nothing() -> None:
    optimizer = made()
    Float32State(optimizer)
    assert not bench(optimizer, 0, torch.bfloat16, 1).preserves


@pytest.mark.parametrize("wrap", [KahanSummation, Facade])
def test_a_schedule_attached_to_a_wrapper_is_that_of_the_optimizer_inside(wrap: Any) -> None:
    optimizer = made()
    wrapped = wrap(optimizer)
    scheduler = lr_scheduler.StepLR(wrapped, 10, 0.5)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(8, dtype=torch.bfloat16)
    wrapped.step()
    scheduler.step()
    ahead = dict(future(optimizer, 1)[0])
    assert (ahead[8], ahead[9]) == (1e-3, 5e-4)
    assert scheduler.last_epoch == 1


def test_a_doctor_given_the_wrapper_watches_the_optimizer_inside() -> None:
    optimizer, other = made(), made()
    wrapped = Facade(KahanSummation(optimizer))
    with Doctor(optimizer=wrapped) as doctor:
        for some in (wrapped, other):
            some.param_groups[0]["params"][0].grad = torch.ones(8, dtype=torch.bfloat16)
            some.step()
    assert [o.type for o in doctor.evidence().optimizers] == ["torch.optim.adamw.AdamW"]


@pytest.mark.parametrize("wrap", [KahanSummation, None])
def test_the_gradients_seen_are_those_without_the_loss_scale(wrap: Any) -> None:
    p = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([p], lr=2.0**-6)
    stepped = wrap(optimizer) if wrap else optimizer
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with Doctor(every=1) as doctor:
        for _ in range(4):
            stepped.zero_grad()
            scaler.scale(p.float().sum()).backward()
            scaler.step(stepped)
            scaler.update()
    found = doctor.evidence().parameters[0].updates
    assert found is not None
    assert found.edq[0].edq == pytest.approx(1, abs=0.05)
