"""Kahan summation adds up what rounding loses."""

from __future__ import annotations

import random

import pytest
import torch

from precdoctor.remedies import KahanSummation
from tests.reference.wrappers import kahan_descent
from tests.remedies.wrappers.build import weight

LR = 2.0**-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("start", [1.0, -0.7, 0.02, 1e-4, 3e-7])
def test_equals_the_slow_twin(start: float, dtype: torch.dtype) -> None:
    p = weight(start, 1, dtype)
    draw = random.Random(0)
    gradients = torch.tensor([draw.gauss(0.3, 1) * start for _ in range(200)]).to(dtype)
    optimizer = KahanSummation(torch.optim.SGD([p], lr=LR))
    found = []
    for gradient in gradients:
        p.grad = gradient.view(1)
        optimizer.step()
        found.append(p.item())
    assert found == kahan_descent(p.new_tensor(start).item(), gradients.tolist(), LR, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("start", [1.0, 1e-4])
def test_updates_of_a_hundredth_of_half_an_ulp_arrive(start: float, dtype: torch.dtype) -> None:
    p = weight(start, 4, dtype)
    begun = p.detach().double()
    optimizer = KahanSummation(torch.optim.SGD([p], lr=LR))
    p.grad = torch.full_like(p, -0.04 * start)
    for _ in range(2000):
        optimizer.step()
    meant = 2000 * LR * p.grad.double().abs()
    assert ((p.double() - begun) / meant).mean().item() == pytest.approx(
        1, abs=0.15
    )  # the compensation is rounded too


def test_elements_written_by_others_lose_their_compensation() -> None:
    p = weight(1.0, 4)
    optimizer = KahanSummation(torch.optim.SGD([p], lr=LR))
    p.grad = torch.ones_like(p)
    optimizer.step()
    p.data[1], p.data[2] = 0.0, -(2.0**-20)  # pruned; made small
    p.grad.zero_()
    optimizer.step()
    assert p.tolist() == [1.0, 0.0, -(2.0**-20), 1.0]
    p.grad.fill_(1.0)
    for _ in range(3):
        optimizer.step()
    # what was left of the first step is still there elsewhere
    assert p[0].item() == 1 - 2.0**-8
    assert p[1].item() == pytest.approx(-3 * LR)


def test_an_infinite_weight_is_not_made_worse() -> None:
    p = weight(65504.0, 2, torch.float16)
    optimizer = KahanSummation(torch.optim.SGD([p], lr=1.0))
    p.grad = torch.tensor([-60000.0, 0.0], dtype=torch.float16)
    for _ in range(2):
        optimizer.step()
    assert p.tolist() == [float("inf"), 65504.0]
    assert optimizer.state_dict()["precdoctor"]["kept"][0].isfinite().all()
