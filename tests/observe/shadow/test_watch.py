"""The shadow holds what float64 would give, whatever the operations do with memory, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from precdoctor.observe.shadow.table import LARGEST
from precdoctor.observe.shadow.watch import ShadowWatch
from tests.observe.shadow.shadowing import seen, shadowed
from tests.reference.shadow import Cast, Program, actual, exact, relative_error


def chain(inputs: list[Tensor], cast: Cast) -> Tensor:
    x, y = map(cast, inputs)
    return ((x * y).exp() + y).softmax(-1)


def in_place(inputs: list[Tensor], cast: Cast) -> Tensor:
    x, y = map(cast, inputs)
    z = x / 3
    z += y
    z.mul_(y).sub_(1)
    z[1:3] *= 7
    z[:, 0] = y[:, 1] / 9
    return z


def views(inputs: list[Tensor], cast: Cast) -> Tensor:
    x, y = map(cast, inputs)
    z = (x / 3).t().reshape(4, -1)
    part = z[:, ::2]
    part.add_(y.flatten()[: part.numel()].view_as(part) / 7)
    return torch.cat([z, z.flip(0)]).unsqueeze(1).expand(-1, 2, -1).transpose(0, 1)


def mixed(inputs: list[Tensor], cast: Cast) -> Tensor:
    x, y = inputs
    low = cast(x * 1.001)
    high = low.to(x.dtype) + y
    return high.index_add(0, torch.tensor([0, 2]), y[:2] / 3) @ cast(y).to(x.dtype).T


def sums(inputs: list[Tensor], cast: Cast) -> Tensor:
    x, y = map(cast, inputs)
    total = torch.zeros(8, dtype=x.dtype)
    for row in x:
        total = total + row * 0.3
    running = torch.zeros_like(x)
    running.copy_(y).cumsum_(0)
    return torch.where(running > 0, total, running.abs().log1p())


def lists(inputs: list[Tensor], cast: Cast) -> Tensor:
    tensors = [cast(t) / 3 for t in inputs]
    torch._foreach_mul_(tensors, 0.7)
    return torch.stack(torch._foreach_norm(tensors))


PROGRAMS = [chain, in_place, views, mixed, sums, lists]


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_shadow_is_what_float64_gives(program: Program, low: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(5, 8), torch.randn(5, 8)]
    wanted = exact(program, inputs)
    with shadowed() as watch:
        out = actual(program, inputs, low)
        held = watch._table.value(out)
    # the masks of `sums` are those of the low format
    if program is not sums:
        torch.testing.assert_close(held, wanted, rtol=1e-12, atol=1e-12)
    assert relative_error(out, held) > 0


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_followed_program_gives_the_same_bits(program: Program) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(5, 8), torch.randn(5, 8)]
    plain = actual(program, inputs, torch.bfloat16)
    state = torch.get_rng_state()
    with shadowed():
        out = actual(program, inputs, torch.bfloat16)
    assert torch.equal(out, plain)
    assert torch.equal(state, torch.get_rng_state())


def error_of(watch: ShadowWatch, tensor: Tensor) -> float:
    return relative_error(tensor, watch._table.value(tensor))


def test_what_a_layer_returns_is_exact_and_its_bias_belongs_to_it() -> None:
    model = nn.Linear(8, 8).bfloat16()
    with shadowed() as watch:
        data = torch.randn(4, 3, 8).bfloat16()
        out = model(data / 3)
        assert error_of(watch, out) == 0
        assert error_of(watch, data @ data.transpose(1, 2)) > 1e-4
        assert error_of(watch, out / 3) > 1e-4


def test_random_numbers_and_jumps_start_anew() -> None:
    with shadowed() as watch:
        x = (torch.randn(64) / 3).bfloat16() / 7
        assert error_of(watch, x) > 1e-4
        assert error_of(watch, (x * 100).round()) == 0
        assert error_of(watch, F.dropout(torch.ones(64, dtype=torch.bfloat16)) * 1) == 0
        x.normal_()
        assert error_of(watch, x) == 0


def test_constants_are_as_they_are_but_ranges_have_an_exact_value() -> None:
    with shadowed() as watch:
        assert error_of(watch, torch.full((4,), 0.1, dtype=torch.bfloat16)) == 0
        positions = torch.arange(1000, dtype=torch.bfloat16)
        torch.testing.assert_close(watch._table.value(positions), torch.arange(1000).double())


def test_what_nobody_saw_written_is_exact_again() -> None:
    weight = torch.ones(8, requires_grad=True)
    with shadowed() as watch:
        gradient = torch.ones(8) / 3
        weight.grad = gradient
        assert error_of(watch, gradient) > 0
        (weight * 2).sum().backward()  # adds into .grad, in backward
        assert error_of(watch, gradient) == 0


def test_memory_that_is_gone_is_let_go_of() -> None:
    with shadowed() as watch:
        for _ in range(600):
            torch.ones(64) / 3
        assert len(watch._table._shadows) <= 2 * 256


def test_large_tensors_are_left_out_and_that_is_said() -> None:
    with shadowed() as watch:
        out = torch.ones(LARGEST + 1) / 3
        assert watch._table.get(out) is None
        small = out[:3] / 7
        assert error_of(watch, small) > 0


def test_late_steps_follow_only_what_was_below_float32() -> None:
    with shadowed() as watch:
        watch_steps(watch, 10)
        assert watch._table.get(torch.ones(8) / 3) is None
        assert watch._table.get(torch.ones(8, dtype=torch.bfloat16) / 3) is not None


def watch_steps(watch: ShadowWatch, step: int) -> None:
    look = watch._look

    def later(operation, kind):  # type: ignore[no-untyped-def]
        operation.step = step
        look(operation, kind)

    watch._look = later  # type: ignore[method-assign]


def test_counts_passes_by_losses() -> None:
    found = seen(lambda: (torch.ones(8) / 3).sum(), passes=4)
    assert found.passes == 4
    assert found.loss_format == "float32"
    assert len(found.loss_errors) == 4
    assert all(error < 1e-6 for _, error in found.loss_errors)
