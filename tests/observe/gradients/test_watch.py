"""What the range of float16 does to gradients is told from exact zeros, noise and what scaling has saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from precdoctor.doctor import Doctor
from precdoctor.evidence import GradientFlow, GradientLoss

F16 = torch.float16


def flow(model: nn.Module, factor: float, scale: float = 1.0) -> GradientFlow:
    """Return what is seen of three steps under float16 autocast, the loss multiplied by factor and scale."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Doctor(probe=True) as doctor:
        for _ in range(3):
            x = torch.randn(64, 16)
            with torch.autocast("cpu", dtype=F16):
                out = model(x)
            loss = factor * out.float().square().mean()
            optimizer.zero_grad()
            (loss * scale).backward()
            optimizer.step()
    found = doctor.evidence().gradient_flow
    assert found is not None
    return found


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def lost(found: GradientFlow, kind: str = "underflow") -> list[GradientLoss]:
    return [loss for loss in found.losses if loss.kind == kind]


def test_gradients_that_flush_are_seen_with_what_they_would_be() -> None:
    found = flow(net(), 1e-6)
    assert found.passes == 3
    worst = max(lost(found), key=lambda loss: loss.share)
    assert worst.backward
    assert worst.passes == 3
    assert worst.share == 1.0
    assert 0 < worst.largest < 2**-14
    assert worst.projection < 0.5
    assert worst.place is not None
    assert worst.place.code == "(loss * scale).backward()"


@pytest.mark.parametrize(("factor", "scale"), [(1e-6, 2.0**20), (1.0, 1.0), (0.0, 1.0)])
def test_scaled_gradients_and_exact_zeros_are_no_underflow(factor: float, scale: float) -> None:
    found = flow(net(), factor, scale)
    assert found.operations > 10
    assert not lost(found)


def test_a_dead_layer_is_no_underflow() -> None:
    model = net()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    assert not lost(flow(model, 1.0, 256.0))


def test_overflow_is_seen_in_the_backward_pass() -> None:
    (first, *_) = lost(flow(net(), 1.0, 1e8), "overflow")
    assert first.backward
    assert first.largest > 65504


REPLACE = {
    "where": lambda g: torch.where(torch.isfinite(g), g, 0),
    "nan_to_num": torch.nan_to_num,
    "nan_to_num_": lambda g: g.nan_to_num_(posinf=0.0, neginf=0.0),
    "masked_fill_": lambda g: g.masked_fill_(~torch.isfinite(g), 0.0),
    "index_put_": lambda g: g.__setitem__(~torch.isfinite(g), 0.0),
}


@pytest.mark.parametrize("name", REPLACE)
@pytest.mark.parametrize("scale", [2.0**20, 1.0])
def test_infinite_gradients_that_are_replaced_are_counted(name: str, scale: float) -> None:
    model = nn.Linear(16, 4).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Doctor(probe=True) as doctor:
        for _ in range(3):
            optimizer.zero_grad()
            (model(torch.ones(8, 16, dtype=F16)).float().square().mean() * scale).backward()
            for parameter in model.parameters():
                assert parameter.grad is not None
                result = REPLACE[name](parameter.grad)
                assert bool(torch.isfinite(parameter.grad if result is None else result).all())
            optimizer.step()
    flow = doctor.evidence().gradient_flow
    assert flow is not None
    found = lost(flow, "patched")
    assert [(each.op, each.passes) for each in found] == [(f"aten::{name}", 3)] * (scale > 1)


def unscale(gradient: Tensor) -> None:
    gradient.div_(2.0**36)


def norm(gradient: Tensor) -> Tensor:
    return (gradient * gradient).sum()


@pytest.mark.parametrize(("work", "kind"), [(unscale, "underflow"), (norm, "overflow")])
def test_what_a_program_makes_of_gradients_is_looked_at(work: Any, kind: str) -> None:
    model = nn.Linear(8, 4).to(F16)
    optimizer = torch.optim.SGD([p.detach().float() for p in model.parameters()], lr=0.1)
    with Doctor(probe=True) as doctor:
        for _ in range(3):
            (model(torch.ones(64, 8).to(F16)).float().sum() * 16).backward()
            for p in model.parameters():
                assert p.grad is not None
                work(p.grad)
                p.grad = None
            optimizer.step()
    found = doctor.evidence().gradient_flow
    assert found is not None
    own = [loss for loss in found.losses if not loss.backward]
    assert {(loss.function, loss.kind) for loss in own} == {(work.__name__, kind)}


@pytest.mark.parametrize(
    ("scale", "through", "is_lost"), [(1.0, False, True), (1e6, False, False), (1.0, True, False)]
)
def test_a_cast_to_8_bits_and_back_casts_the_gradient(scale: float, through: bool, is_lost: bool) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(8, 16), nn.Linear(16, 2)
    optimizer = torch.optim.SGD([*first.parameters(), *last.parameters()], lr=0.0)

    def pack(x: Tensor) -> Tensor:
        packed = (x * 400).to(torch.float8_e4m3fn).to(x.dtype) / 400
        return x + (packed - x).detach() if through else packed

    with Doctor(probe=True) as doctor:
        for _ in range(3):
            loss = scale * last(pack(first(torch.randn(64, 8)).tanh())).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert first.weight.grad is not None
    assert bool((first.weight.grad == 0).all()) == is_lost
    found = doctor.evidence().gradient_flow
    assert found is not None
    assert [(x.op, x.format, x.passes) for x in lost(found)] == (
        [("aten::_to_copy", "e4m3fn", 3)] if is_lost else []
    )
    assert all(x.cast is not None and "float8_e4m3fn" in x.cast.code for x in lost(found))


class Layerwise(torch.optim.Optimizer):
    """Divides each gradient by its norm, which is formed in a format of its own."""

    def __init__(self, params: Any, dtype: torch.dtype) -> None:
        super().__init__(params, {"lr": 0.0})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            norm = p.grad.to(self.dtype).square().sum().sqrt().float()
            p.sub_(p.grad / norm.clamp(min=1e-8), alpha=0.0)


@pytest.mark.parametrize(
    ("factor", "dtype", "ops"),
    [
        (1e-5, F16, {"aten::pow"}),
        (1e-9, F16, {"aten::_to_copy"}),
        (1.0, F16, set()),
        (1e-5, torch.float32, set()),
        (1e-5, torch.bfloat16, set()),
    ],
)
def test_what_an_optimizer_of_ones_own_does_to_gradients_is_seen(
    factor: float, dtype: torch.dtype, ops: set[str]
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    optimizer = Layerwise(model.parameters(), dtype)
    with Doctor(probe=True) as doctor:
        for _ in range(3):
            optimizer.zero_grad()
            (factor * model(torch.randn(64, 8)).square().mean()).backward()
            optimizer.step()
    found = doctor.evidence().gradient_flow
    assert found is not None
    small = lost(found)
    assert {loss.op for loss in small} == ops
    assert all(loss.lost == loss.seen and not loss.backward for loss in small)
    assert all(loss.place is not None and "norm = " in loss.place.code for loss in small)


class Bucket:
    """Adds the gradients of several replicas up in a format of its own, and leaves infinite ones out."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.parameters = list(model.parameters())
        self.flat = torch.zeros(sum(p.numel() for p in self.parameters), dtype=dtype)

    def push(self, gradients: Any) -> None:
        self.flat += torch.cat([g.reshape(-1) for g in gradients]).to(self.flat.dtype)

    def finish(self, count: int) -> bool:
        mean = self.flat.float() / count
        for p, g in zip(self.parameters, mean.split([p.numel() for p in self.parameters]), strict=True):
            p.grad = g.view_as(p)
        self.flat.zero_()
        return bool(torch.isfinite(mean).all())


class Copies(Bucket):
    """Casts each gradient as it copies it into its place, and adds them with one call."""

    def push(self, gradients: Any) -> None:
        flat = torch.empty_like(self.flat)
        for place, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True):
            place.copy_(g.flatten())
        torch._foreach_add_([self.flat], [flat])


def replicas(
    bucket: type[Bucket],
    dtype: torch.dtype = F16,
    *,
    scale: float = 1.0,
    falls: bool = False,
    steps: int = 12,
) -> GradientFlow:
    """Return what is seen of the gradients of four replicas, the sums of which are large now and then."""
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    flat = bucket(model, dtype)
    with Doctor(probe=True) as doctor:
        for step in range(steps):
            large = 1.0 if step in (0, 2, 3, 7) else 0.8
            for _ in range(4):
                loss = scale * large * 2e4 * model(torch.ones(2, 8)).sum() / 2
                flat.push(torch.autograd.grad(loss, flat.parameters))
            if flat.finish(4):
                optimizer.step()
            elif falls:
                scale /= 2
    found = doctor.evidence().gradient_flow
    assert found is not None
    return found


@pytest.mark.parametrize(("bucket", "op"), [(Bucket, "aten::add_"), (Copies, "aten::_foreach_add_")])
def test_sums_of_gradients_that_overflow_are_seen_with_the_steps_left_out(
    bucket: type[Bucket], op: str
) -> None:
    found = replicas(bucket)
    (overflow,) = lost(found, "overflow")
    assert (overflow.op, overflow.backward, overflow.adds_or_casts) == (op, False, True)
    assert overflow.steps >= 2
    assert overflow.largest == pytest.approx(8e4, rel=0.01)
    assert overflow.place is not None
    assert overflow.function == "push"
    assert (found.attempts.made, found.attempts.left_out) == (12, 4)
    assert found.attempts.loss_ratio == pytest.approx(0.8, rel=0.01)


def test_a_scale_that_falls_shows_in_the_losses_after_a_step_that_was_left_out() -> None:
    attempts = replicas(Bucket, scale=16.0, falls=True, steps=14).attempts
    assert attempts.left_out > 2
    assert attempts.loss_ratio is not None
    assert attempts.loss_ratio < 0.7


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1.0), (F16, 0.25)])
def test_sums_in_the_range_are_no_overflow(dtype: torch.dtype, scale: float) -> None:
    found = replicas(Bucket, dtype, scale=scale)
    assert not lost(found, "overflow")
    assert found.attempts.left_out == 0


def test_a_cast_of_gradients_that_are_too_large_is_seen() -> None:
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Doctor(probe=True) as doctor:
        for _ in range(3):
            optimizer.zero_grad()
            (1e5 * model(torch.ones(2, 8)).sum()).backward()
            for p in model.parameters():
                assert p.grad is not None
                p.grad = torch.nan_to_num(p.grad.half()).float()
            optimizer.step()
    found = doctor.evidence().gradient_flow
    assert found is not None
    (cast,) = lost(found, "overflow")
    assert (cast.op, cast.adds_or_casts, cast.steps) == ("aten::_to_copy", True, 3)


def test_gradients_of_many_directions_at_once_are_no_matter() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(probe=True) as doctor:
        for _ in range(3):
            out = model(torch.ones(1, 3))
            torch.autograd.grad(out, list(model.parameters()), torch.ones(4, 1, 2), is_grads_batched=True)
            torch.autograd.grad(
                model(torch.ones(1, 3))[:, :1], [model.weight], torch.ones(4, 1, 1), is_grads_batched=True
            )
            torch.func.vmap(torch.func.grad(lambda w: (w**2).sum()))(torch.ones(4, 2))
            optimizer.zero_grad()
            model(torch.ones(3)).sum().backward()
            optimizer.step()
    assert doctor.evidence().run.limits == ()
