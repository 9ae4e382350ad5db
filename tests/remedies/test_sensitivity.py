from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from precdoctor.remedies.sensitivity import sensitivity


class Quantized(nn.Linear):
    largest = 7

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().amax() / self.largest if self.largest else 1.0
        return F.linear(x, (self.weight / scale).round() * scale if self.largest else self.weight)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    found = nn.Sequential(*(Quantized(16, 16, bias=False) for _ in range(3)), nn.Dropout(0.1))
    found[1].largest = 1  # the coarse one
    found[2].largest = 127
    return found


def test_is_the_change_of_the_loss_without_the_quantizer_of_each_layer(model: nn.Sequential) -> None:
    x = torch.randn(64, 16)
    target = torch.randn(64, 16)

    def loss() -> Tensor:
        return (model(x) - target).square().mean()

    state = torch.get_rng_state()
    costs = sensitivity(loss)
    assert torch.equal(torch.get_rng_state(), state)
    expected = {}
    for index in range(3):
        torch.set_rng_state(state)
        base = loss().item()
        largest, model[index].largest = model[index].largest, 0
        torch.set_rng_state(state)
        expected[f"{index}.weight"] = base - loss().item()
        model[index].largest = largest
    assert costs == pytest.approx(expected, abs=1e-6)
    assert next(iter(costs)) == max(expected, key=lambda name: expected[name])


def test_nothing_quantized_costs_nothing() -> None:
    layer = nn.Linear(4, 4)
    assert sensitivity(lambda: layer(torch.ones(1, 4)).sum()) == {}
    assert torch._C._len_torch_dispatch_stack() == 0
