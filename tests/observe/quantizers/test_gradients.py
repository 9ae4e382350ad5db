"""What backward passes make of gradients on a grid, against plain Python over the same values."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from precdoctor.doctor import Doctor
from precdoctor.evidence import GradientQuantizer
from precdoctor.rules import diagnose
from tests.reference import quantizers as slow

Quantize = Callable[[Tensor], Tensor]


class Product(torch.autograd.Function):
    """A product whose gradient is quantized; keeps the gradient and what is used of it."""

    seen: list[tuple[Tensor, Tensor]]

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, quantize: Quantize) -> Tensor:
        ctx.quantize = quantize
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        used = ctx.quantize(gradient)
        Product.seen.append((gradient.clone(), used.clone()))
        return used @ weight, used.t() @ x, None


class Layer(nn.Linear):
    def __init__(self, inputs: int, outputs: int, quantize: Quantize) -> None:
        super().__init__(inputs, outputs)
        self.quantize = quantize

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Product.apply(x, self.weight, self.quantize)  # type: ignore[no-untyped-call]
        return found + self.bias


def train(middle: nn.Module, steps: int = 3) -> Doctor:
    torch.manual_seed(0)
    Product.seen = []
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), middle)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Doctor(model, every=1, probe=True) as doctor:
        for _ in range(steps):
            x = torch.randn(64, 8)
            loss = F.cross_entropy(model(x), (8 * x[:, 0]).long().clamp(0, 15))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert not [text for text in doctor.evidence().run.limits if "failed" in text]
    return doctor


def only(middle: nn.Module) -> GradientQuantizer:
    (found,) = train(middle).evidence().gradient_quantizers
    return found


def tensor_wise(gradient: Tensor) -> Tensor:
    scale = gradient.abs().amax() / 7
    return (gradient / scale).round() * scale


def blocks(gradient: Tensor) -> Tensor:
    blocked = gradient.reshape(-1, 8)
    scale = blocked.abs().amax(1, keepdim=True).clamp(min=1e-30) / 7
    return (torch.round(blocked / scale) * scale).view_as(gradient)


def columns(gradient: Tensor) -> Tensor:
    turned = gradient.t().contiguous()
    scale = turned.abs().amax(1, keepdim=True) / 7
    return ((turned / scale).round() * scale).t()


def table(gradient: Tensor) -> Tensor:
    levels = torch.tensor([-1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0])
    scale = gradient.abs().amax()
    return levels[((gradient / scale)[..., None] - levels).abs().argmin(-1)] * scale


def counted(gradient: Tensor) -> Tensor:
    scale = gradient.abs().amax() / 3
    codes = torch.zeros(gradient.shape)
    for level in (0.5, 1.5, 2.5):
        codes += (gradient.abs() / scale > level).float()
    return codes * gradient.sign() * scale


def in_place(gradient: Tensor) -> Tensor:
    scale = gradient.abs().amax() / 7
    return (gradient / scale).round_().clamp_(-7, 7).mul_(scale)


def stochastic(gradient: Tensor) -> Tensor:
    scale = gradient.abs().amax() / 7
    return torch.floor(gradient / scale + torch.rand_like(gradient)) * scale


def e4m3(gradient: Tensor) -> Tensor:
    scale = gradient.abs().amax() / 448
    return (gradient / scale).to(torch.float8_e4m3fn).to(gradient.dtype) * scale


def clipped(gradient: Tensor) -> Tensor:
    scale = gradient.abs().amax() / 9
    return (gradient / scale).round().clamp(-6, 6) * scale


@pytest.mark.parametrize(
    "quantize",
    [tensor_wise, blocks, columns, table, counted, in_place, stochastic, e4m3, clipped],
    ids=lambda f: f.__name__,
)
def test_measures_what_is_left_of_a_gradient(quantize: Quantize) -> None:
    found = only(Layer(32, 16, quantize))
    assert (found.shape, found.seen) == ((64, 16), len(Product.seen))

    def of(measure: Callable[[Tensor, Tensor], Any]) -> float:
        return median(measure(gradient, used) for gradient, used in Product.seen)

    assert found.projection == pytest.approx(of(slow.projection))
    assert found.bias == pytest.approx(of(slow.bias), abs=1e-7)
    assert found.sqnr_db == pytest.approx(of(slow.sqnr_db))
    assert found.flushed_share == pytest.approx(of(slow.flushed_share))
    assert found.flushed_energy == pytest.approx(of(slow.flushed_energy))
    assert found.random == (quantize is stochastic)
    assert found.format.startswith("float8") == (quantize is e4m3)


def test_names_the_line_that_gets_the_gradient_and_that_which_rounds() -> None:
    found = only(Layer(32, 16, tensor_wise))
    assert found.function == "tensor_wise"
    assert found.place is not None
    assert found.place.code == "used = ctx.quantize(gradient)"
    assert found.rounding is not None
    assert found.rounding.code == "return (gradient / scale).round() * scale"


class Pass(torch.autograd.Function):
    """Passes values on, and quantizes the gradient."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        used = tensor_wise(gradients[0])
        Product.seen.append((gradients[0].clone(), used.clone()))
        return used


class Passing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return Pass.apply(super().forward(x))  # type: ignore[no-untyped-call, no-any-return]


class Hooked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if out.requires_grad:
            out.register_hook(self.quantize)  # type: ignore[no-untyped-call]
        return out

    def quantize(self, gradient: Tensor) -> Tensor:
        used = tensor_wise(gradient)
        Product.seen.append((gradient.clone(), used.clone()))
        return used


def on_the_parameter() -> nn.Module:
    layer = nn.Linear(32, 16)

    def quantize(gradient: Tensor) -> Tensor:
        used = tensor_wise(gradient)
        Product.seen.append((gradient.clone(), used.clone()))
        return used

    layer.weight.register_hook(quantize)  # type: ignore[no-untyped-call]
    return layer


@pytest.mark.parametrize("make", [lambda: Passing(32, 16), lambda: Hooked(32, 16), on_the_parameter])
def test_follows_a_gradient_out_of_the_function_that_rounds_it(make: Callable[[], nn.Module]) -> None:
    found = only(make())
    assert found.projection == pytest.approx(median(slow.projection(g, q) for g, q in Product.seen))
    assert found.sqnr_db == pytest.approx(median(slow.sqnr_db(g, q) or 0 for g, q in Product.seen))


FACTORS = torch.linspace(0, 1, 1024).reshape(64, 16)


def masked(gradient: Tensor) -> Tensor:
    return tensor_wise(gradient * FACTORS)


def test_a_gradient_times_other_values_is_another_gradient() -> None:
    found = only(Layer(32, 16, masked))
    assert found.projection == pytest.approx(median(slow.projection(g * FACTORS, q) for g, q in Product.seen))


@pytest.mark.parametrize(
    "harmless",
    [
        lambda g: g * 1.0,
        lambda g: g.to(torch.bfloat16).float(),
        lambda g: g.sign() * g.abs().mean(),
        lambda g: g.clamp(-1, 1),
        lambda g: g * (g.abs() > g.abs().mean()),
    ],
    ids=["nothing", "cast", "signs", "clamp", "sparse"],
)
def test_what_does_not_round_is_no_quantizer(harmless: Quantize) -> None:
    doctor = train(Layer(32, 16, harmless))
    assert doctor.evidence().gradient_quantizers == ()


def divided_in_place(gradient: Tensor) -> Tensor:
    scale = gradient.abs().amax(1, keepdim=True) / 7
    gradient.div_(scale)
    return gradient.round() * scale


def test_a_gradient_that_was_written_over_is_left_out() -> None:
    doctor = train(Layer(32, 16, divided_in_place))
    assert doctor.evidence().gradient_quantizers == ()


def grave(middle: nn.Module) -> list[tuple[str, str]]:
    found = diagnose(train(middle, steps=8).evidence()).findings
    return [(f.rule, f.severity) for f in found if f.rule in ("PD603", "PD604")]


def coarse(gradient: Tensor) -> Tensor:
    scale = gradient.abs().amax() / 2
    return (gradient / scale).round() * scale


def unscaled(gradient: Tensor) -> Tensor:
    return gradient.round()


def test_rounding_to_nearest_that_does_not_cancel_is_found_and_by_chance_is_not() -> None:
    assert grave(Layer(32, 128, coarse)) == [("PD603", "error")]
    assert grave(Layer(32, 128, stochastic)) == []
    assert grave(Layer(32, 128, blocks)) == []


def test_a_scale_that_does_not_fit_is_found() -> None:
    assert grave(Layer(32, 16, clipped)) == [("PD604", "warning")]
    assert grave(Layer(32, 16, unscaled)) == [("PD604", "error")]
