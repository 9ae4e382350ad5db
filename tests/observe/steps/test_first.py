"""Optimizers whose constructor makes their state are replayed like those that make it in the first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from precdoctor.observe.steps.bench import bench, is_elementwise
from precdoctor.observe.steps.first import first_state
from precdoctor.observe.steps.twin import CannotReplay


class Eager(torch.optim.Optimizer):
    """RMSprop with momentum-free state, a counter and a float32 copy of the weights, all made at once."""

    def __init__(self, params: Any, lr: float = 1e-2, dtype: torch.dtype = torch.float16) -> None:
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["square"] = torch.full(p.shape, 0.5, dtype=dtype)
                self.state[p]["count"] = torch.zeros(())
                self.state[p]["master"] = p.detach().float().clone()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["count"] += 1
                state["square"].mul_(0.99).addcmul_(p.grad.to(state["square"].dtype), p.grad, value=0.01)
                state["master"].addcdiv_(p.grad, state["square"].sqrt() + 1e-8, value=-group["lr"])
                p.copy_(state["master"])


def weights(dtype: torch.dtype = torch.bfloat16) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((4, 8), (8,), ())]


def test_a_toy_gets_the_constants_the_counter_and_a_master_of_its_own() -> None:
    toy = torch.tensor([0.25, 3.0], dtype=torch.float64)
    state = first_state(Eager(weights()), 0, toy)
    assert state["square"].tolist() == [0.5, 0.5]
    assert state["square"].dtype == torch.float16
    assert state["master"].tolist() == [0.25, 3.0]
    assert state["master"].dtype == torch.float32
    assert state["count"].shape == ()


def test_nothing_of_the_run_is_shared() -> None:
    optimizer = Eager(weights())
    mine = first_state(optimizer, 0, torch.ones(4, 8))
    for value in mine.values():
        value.fill_(7.0)
    assert all(not bool((v == 7).any()) for s in optimizer.state.values() for v in s.values())


@pytest.mark.parametrize("make", [Eager, torch.optim.Adagrad])
def test_the_bench_steps_them(make: Any) -> None:
    optimizer = make(weights(), lr=1e-2)
    assert is_elementwise(optimizer, 0, 2) == (True, False)
    result = bench(optimizer, 0, torch.bfloat16, 2)
    assert result.why_not == ""
    # the master carries what rounding the weight loses; Adagrad has none
    assert result.preserves == (make is Eager)


def test_state_that_a_resumed_optimizer_holds_is_not_its_first() -> None:
    parameters = weights(torch.float32)
    optimizer = torch.optim.Adam(parameters)
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert first_state(optimizer, 0, torch.ones(3)) == {}


def test_state_of_an_unknown_beginning_is_refused() -> None:
    optimizer = Eager(weights())
    for state in optimizer.state.values():
        state["square"] = torch.rand(state["square"].shape)
    with pytest.raises(CannotReplay, match="'square'"):
        first_state(optimizer, 0, torch.ones(3))
