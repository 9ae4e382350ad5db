"""Stochastic rounding is right on average, reproducible, and draws from generators of its own."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from precdoctor.remedies import StochasticRounding
from tests.reference.wrappers import neighbours
from tests.remedies.wrappers.build import adamw, bits, net, train, weight

DRAWS = 100_000
MAX = {torch.bfloat16: float(torch.finfo(torch.bfloat16).max), torch.float16: 65504.0}
SMALLEST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}


def stored(value: float, dtype: torch.dtype, size: int = DRAWS, seed: int = 0) -> torch.Tensor:
    """Return what is stored where the optimizer's result is ``value`` everywhere."""
    p = weight(0.0, size, dtype)
    with torch.no_grad():
        StochasticRounding(adamw([p]), seed=seed).store(p, torch.full((size,), value))
    return p.detach().double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "share", [1.0003, -1.0003, 0.9997, -0.9997, 1.00387, 0.02, -3.3e-4, 1234.56, "subnormal"]
)
def test_the_mean_is_the_exact_value(share: float | str, dtype: torch.dtype) -> None:
    exact = 5.3 * SMALLEST[dtype] if isinstance(share, str) else share
    value = torch.tensor(exact, dtype=torch.float32).item()
    found = stored(value, dtype)
    lower, upper = neighbours(value, dtype)
    assert lower < value < upper
    assert set(found.unique().tolist()) <= {lower, upper}
    chance = (value - lower) / (upper - lower)
    bound = 5 * (upper - lower) * math.sqrt(chance * (1 - chance) / DRAWS)
    assert abs(found.mean().item() - value) <= bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_the_format_holds_is_stored_as_it_is(dtype: torch.dtype) -> None:
    for value in (0.0, 1.0, -1.0, 0.5, SMALLEST[dtype], -MAX[dtype], float("inf"), -float("inf")):
        assert stored(value, dtype, 1000).eq(value).all()
    assert stored(float("nan"), dtype, 10).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_no_finite_value_becomes_infinite_unless_the_nearest_is(dtype: torch.dtype, sign: int) -> None:
    largest, half_ulp = MAX[dtype], MAX[dtype] * 2.0**-9 / (1 if dtype == torch.bfloat16 else 8)
    near = torch.tensor(largest, dtype=torch.float32) + 0.4 * half_ulp
    assert near > largest
    assert stored(sign * near.item(), dtype, 1000).eq(sign * largest).all()
    if dtype == torch.float16:
        assert stored(sign * 65530.0, dtype, 10).eq(sign * float("inf")).all()


def test_the_drift_of_many_small_steps_is_the_intended_one() -> None:
    p = weight(1.0, 20_000)
    optimizer = StochasticRounding(torch.optim.SGD([p], lr=1.0), seed=0)
    p.grad = torch.full_like(p, -(2.0**-12))
    for _ in range(64):
        optimizer.step()
    assert p.float().mean().item() == pytest.approx(1 + 2.0**-6, abs=5 * 2.0**-7 * 2 / math.sqrt(20_000))


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert torch.equal(stored(1.001, torch.bfloat16, seed=1), stored(1.001, torch.bfloat16, seed=1))
    assert not torch.equal(stored(1.001, torch.bfloat16, seed=1), stored(1.001, torch.bfloat16, seed=2))
    assert StochasticRounding(adamw([weight()])).seed == 3
    assert torch.equal(before, torch.get_rng_state())


def test_runs_alike_whatever_the_program_draws() -> None:
    results = []
    for draws in (0, 5):
        model = net()
        optimizer = StochasticRounding(adamw(model.parameters()), seed=7)
        for step in range(4):
            torch.randn(draws)
            train(model, optimizer, 1, first=step)
        results.append(bits(model))
    assert results[0] == results[1]


def test_a_checkpoint_holds_the_generators() -> None:
    p = weight(1.0, 100)
    optimizer = StochasticRounding(torch.optim.SGD([p], lr=1.0), seed=0)
    p.grad = torch.full_like(p, 2.0**-11)
    optimizer.step()
    checkpoint = copy.deepcopy(optimizer.state_dict())
    start = p.detach().clone()
    optimizer.step()
    q = torch.nn.Parameter(start)
    q.grad = p.grad.clone()
    again = StochasticRounding(torch.optim.SGD([q], lr=1.0), seed=99)
    again.load_state_dict(checkpoint)
    assert again.state_dict()["precdoctor"]["generators"].keys() == {"cpu"}
    again.step()
    assert torch.equal(p, q)
