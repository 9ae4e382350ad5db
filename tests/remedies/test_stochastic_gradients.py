from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.remedies.running import in_a_folder_of_its_own, losses_of, run

__all__ = ["in_a_folder_of_its_own"]

#: {rounded} makes the codes that a gradient x gets, in units of them
PROGRAM = """
import torch
from torch import nn
from torch.nn import functional as F
torch.manual_seed(0)
torch.set_num_threads(1)

class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        inputs, weight = ctx.saved_tensors
        scale = gradient.abs().amax() / {largest}
        x = gradient / scale
        {rounded}
        used = x * scale
        return used @ weight, used.t() @ inputs

class Layer(nn.Linear):
    def forward(self, x):
        weight = {weight}
        return Product.apply(x, weight) + self.bias

model = nn.Sequential(Layer(32, 64), nn.ReLU(), Layer(64, 128))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
data = torch.Generator().manual_seed(1)
for step in range({steps}):
    x = torch.randn(64, 32, generator=data)
    loss = F.cross_entropy(model(x), (x[:, :4] > 0).long() @ torch.tensor([8, 4, 2, 1]))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    {after}
"""
NEAREST = "x = x.round()"


def program(
    rounded: str = NEAREST,
    *,
    largest: int = 3,
    weight: str = "self.weight",
    after: str = "pass",
    steps: int = 12,
) -> str:
    return PROGRAM.format(rounded=rounded, largest=largest, weight=weight, after=after, steps=steps)


@pytest.mark.parametrize("rounded", [NEAREST, "x = torch.round(x)", "x.round_()", "torch.round_(x)"])
def test_errors_of_a_gradient_s_rounding_no_longer_point_one_way(rounded: str) -> None:
    untreated = run(program(rounded))
    assert untreated.ill("PD603") == {"backward"}
    (before,) = [q for q in untreated.evidence.gradient_quantizers if q.shape[1] == 128]

    treated = run(program(rounded), "stochastic-gradients")
    assert treated.intervention.acted
    assert treated.ill("PD603") == set()
    (after,) = [q for q in treated.evidence.gradient_quantizers if q.shape[1] == 128]
    assert before.bias is not None
    assert after.bias is not None
    assert (before.random, after.random) == (False, True)
    assert before.bias > 0.4
    assert after.bias < 0.1


def test_learns_what_rounding_to_nearest_does_not() -> None:
    steps = 60
    nearest = losses_of(program(steps=steps))[-1]
    exact = losses_of(program("pass", steps=steps))[-1]
    treated = run(program(steps=steps), "stochastic-gradients").losses[-1]
    assert treated - exact < 0.5 * (nearest - exact)


def test_rounds_to_eight_bits_by_chance() -> None:
    text = program("x = x.to(torch.float8_e5m2).float()", largest=50000)
    treated = run(text, "stochastic-gradients")
    assert treated.intervention.acted
    assert treated.losses != losses_of(text)
    for (
        found
    ) in treated.evidence.gradient_quantizers:  # 2 bits of significand: errors twice as large as nearest
        assert found.sqnr_db is not None
        assert 15 < found.sqnr_db < 25


@pytest.mark.parametrize(
    "weight",
    [
        "self.weight + ((self.weight / 0.01).round() * 0.01 - self.weight).detach()",
        "self.weight.to(torch.float8_e4m3fn).float() + self.weight - self.weight.detach()",
    ],
)
def test_leaves_the_rounding_of_weights_alone(weight: str) -> None:
    text = program("pass", weight=weight)
    treated = run(text, "stochastic-gradients")
    assert not treated.intervention.acted
    assert treated.losses == losses_of(text)


@pytest.mark.parametrize(
    "rounded", ["x = x.round(decimals=3)", "x = x.to(torch.bfloat16).float()", "x = torch.floor(x + 0.5)"]
)
def test_other_roundings_stay_as_they_are(rounded: str) -> None:
    treated = run(program(rounded), "stochastic-gradients")
    assert not treated.intervention.acted
    assert treated.losses == losses_of(program(rounded))


def test_draws_no_random_numbers_of_the_program() -> None:
    text = "from pathlib import Path\n" + program() + "Path('drawn').write_text(repr(torch.rand(1).item()))\n"
    drawn = []
    for remedy in (None, "stochastic-gradients"):
        run(text, remedy)
        drawn.append(Path("drawn").read_text())
    assert drawn[0] == drawn[1]


def test_leaves_no_mode_behind() -> None:
    run(program(), "stochastic-gradients")
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch._C._len_torch_function_stack() == 0
