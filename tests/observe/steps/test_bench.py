"""The bench test tells optimizers that keep small updates from those that lose them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from precdoctor.observe.steps.bench import bench, decay_setting, is_elementwise
from tests.reference import optimizers as reference
from tests.test_harmless import OPTIMIZERS


def made(make: Callable[[Any], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    return make([nn.Parameter(torch.ones(16, 16, dtype=torch.bfloat16))])


@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdamW foreach", "Adafactor", "Muon", "RMSprop"])
def test_plain_optimizers_lose_small_updates_and_keep_large_ones(name: str) -> None:
    result = bench(made(OPTIMIZERS[name]), 0, torch.bfloat16, 2)
    assert result.edq_small == pytest.approx(0, abs=0.1)
    assert result.edq_large == pytest.approx(1, abs=0.3)
    assert not result.preserves


@pytest.mark.parametrize("kind", [reference.Kahan, reference.OwnMaster, reference.StochasticRounding])
def test_optimizers_that_carry_the_remainder_keep_them(kind: Callable[[Any], torch.optim.Optimizer]) -> None:
    result = bench(made(kind), 0, torch.bfloat16, 2)
    assert result.edq_small == pytest.approx(1, abs=0.15)
    assert result.preserves


class Shrinking(torch.optim.Optimizer):
    """Descent with a decay of another name, decoupled or as a part of the gradient, and a clip."""

    def __init__(self, params: Any, lr: float = 0.0, **settings: float) -> None:
        super().__init__(params, {"lr": lr, "clip": 1.0, **settings})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if "wd" in group:
                    p.mul_(1 - group["lr"] * group["wd"])
                p.add_(p.grad.clamp(-group["clip"], group["clip"]), alpha=-group["lr"])


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: torch.optim.AdamW(p, weight_decay=0.1), "weight_decay"),
        (lambda p: torch.optim.AdamW(p, weight_decay=0.0), "weight_decay"),
        (lambda p: torch.optim.Rprop(p), None),
        (lambda p: Shrinking(p), None),
        (lambda p: Shrinking(p, wd=0.1), "wd"),
        (lambda p: Shrinking(p, weight_decay=0.0, wd=0.1), "wd"),
    ],
)
def test_knows_the_setting_that_shrinks_weights(
    make: Callable[[Any], torch.optim.Optimizer], name: str | None
) -> None:
    assert decay_setting(made(make), 0) == name


def test_sees_an_optimizer_that_does_not_write_its_results() -> None:
    result = bench(made(reference.WritesNothing), 0, torch.bfloat16, 2)
    # nothing moves in float64 either: the toy has no exact travel to compare with
    assert result.edq_large is None or result.edq_large == 0
    assert not result.preserves


def test_sees_that_epsilon_vanishes_in_float16() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(8, dtype=torch.float16))], foreach=False)
    assert bench(optimizer, 0, torch.float16, 1).zero_gradient_finite is False
    optimizer.param_groups[0]["eps"] = 1e-4
    assert bench(optimizer, 0, torch.float16, 1).zero_gradient_finite is True


def test_is_not_misled_by_a_warm_up_from_zero() -> None:
    optimizer = made(OPTIMIZERS["Muon"])
    optimizer.param_groups[0]["lr"] = 0.0
    assert is_elementwise(optimizer, 0, 2) == (False, False)


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n not in ("Muon", "Adafactor")])
def test_knows_the_elementwise_optimizers(name: str) -> None:
    assert is_elementwise(made(OPTIMIZERS[name]), 0, 2)[0]


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_knows_the_others(name: str) -> None:
    assert not is_elementwise(made(OPTIMIZERS[name]), 0, 2)[0]


def test_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    bench(made(reference.StochasticRounding), 0, torch.bfloat16, 2)
    assert torch.equal(before, torch.get_rng_state())
