"""Scalers are seen: the scale, steps left out, clipping and stepping in the wrong order; nothing is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.optim import optimizer as torch_optimizer

from precdoctor.doctor import Doctor
from precdoctor.evidence import Scaler
from tests.reference.amp import scales

Step = Callable[[torch.amp.GradScaler, torch.optim.Optimizer, nn.Module], None]


def run(
    after_backward: Step,
    *,
    steps: int = 8,
    infinite: Callable[[int], bool] = lambda step: False,
    backward: Callable[[torch.amp.GradScaler, Tensor], None] = lambda scaler, loss: scaler.scale(
        loss
    ).backward(),
    kind: type[torch.amp.GradScaler] = torch.amp.GradScaler,
    fused: bool = False,
    **settings: Any,
) -> Scaler:
    """Train a little under a Doctor and return what it saw of the scaler."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    with Doctor(every=1, probe=True) as doctor:
        scaler = kind("cpu", **{"init_scale": 2.0**10, **settings})
        for step in range(steps):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 6)).square().mean() * (math.inf if infinite(step) else 1.0)
            backward(scaler, loss)
            after_backward(scaler, optimizer, model)
    (found,) = doctor.evidence().scalers
    return found


def right(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad", [(), (0, 1, 5), (3,), tuple(range(12))])
def test_follows_the_scale_like_a_scaler_in_plain_python(bad: tuple[int, ...], fused: bool) -> None:
    def plain(scaler: Any, optimizer: Any, _: Any) -> None:
        scaler.step(optimizer)
        scaler.update()

    found = run(plain, steps=12, infinite=lambda step: step in bad, growth_interval=3, fused=fused)
    expected = scales([step in bad for step in range(12)], 2.0**10, interval=3)
    assert (found.updates, found.skipped) == (12, len(bad))
    assert (found.first_scale, found.scale) == (2.0**10, expected[-1])
    assert found.smallest_scale == min(2.0**10, *expected)
    changes = [(i + 1, s) for i, s in enumerate(expected) if not i or s != expected[i - 1]]
    assert list(found.trace) == changes


def test_names_what_was_not_finite() -> None:
    found = run(right, infinite=lambda step: step == 2)
    assert set(found.overflowing) == {"weight", "bias"}
    assert found.loss_finite is False


def test_the_order_of_the_documentation_leaves_nothing_to_say() -> None:
    found = run(right, steps=20)
    assert (found.early_clips, found.bypasses) == ((), ())
    assert None not in (found.scaled_at, found.stepped_at)


class Own(torch.amp.GradScaler):
    """A scaler of the user's own that goes on to torch's."""

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        super().unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        return super().step(optimizer, *args, **kwargs)


@pytest.mark.parametrize("kind", [torch.amp.GradScaler, Own])
@pytest.mark.parametrize("later", [True, False])
def test_sees_a_clip_of_scaled_gradients(kind: type[torch.amp.GradScaler], later: bool) -> None:
    norms: list[float] = []

    def clip(scaler: Any, optimizer: Any, model: nn.Module) -> None:
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        if later:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    (early,) = run(clip, kind=kind).early_clips
    assert (early.kind, early.seen) == ("norm", 8)
    assert early.samples == tuple((2.0**10, 1.0, norm) for norm in norms)


def test_sees_a_clip_of_values_and_what_they_were() -> None:
    largest: list[float] = []

    def clip(scaler: Any, optimizer: Any, model: nn.Module) -> None:
        largest.append(max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None))
        clip_grad.clip_grad_value_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()

    (early,) = run(clip).early_clips
    assert (early.kind, [s[2] for s in early.samples]) == ("value", largest)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_sees_gradients_that_hooks_clamp(in_place: bool, scaled: bool) -> None:
    largest = [0.0]

    class Net(nn.Linear):
        def __init__(self, *sizes: int) -> None:
            super().__init__(*sizes)
            for parameter in self.parameters():
                parameter.register_hook(self.clamp)

        def clamp(self, gradient: Tensor) -> Tensor:
            largest[-1] = max(largest[-1], float(gradient.abs().max()))
            return gradient.clamp_(-0.25, 0.25) if in_place else gradient.clamp(-0.25, 0.25)

    model = Net(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Doctor(every=1, probe=True) as doctor:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 6)).square().mean()
            (scaler.scale(loss) if scaled else loss).backward()
            if scaled:
                scaler.step(optimizer)
                scaler.update()
            largest.append(0.0)
    (found,) = doctor.evidence().scalers
    if not scaled:
        assert found.early_clips == ()
        return
    (early,) = found.early_clips
    assert (early.kind, early.seen) == ("clamp", 3)
    assert early.samples == tuple((2.0**10, 0.25, top) for top in largest[:3])
    assert early.place is not None
    assert early.place.function == "clamp"


def test_a_clip_of_other_parameters_is_no_matter() -> None:
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()

    def clip(scaler: Any, optimizer: Any, _: Any) -> None:
        nn.utils.clip_grad_norm_(other.parameters(), 1e-3)
        scaler.step(optimizer)
        scaler.update()

    assert run(clip).early_clips == ()


def test_knows_own_clipping_by_the_norm_that_it_leaves() -> None:
    def clip(scaler: Any, optimizer: Any, model: nn.Module) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.cat([g.reshape(-1) for g in gradients]).norm()
        for gradient in gradients:
            gradient.mul_(0.5 / norm)
        scaler.step(optimizer)
        scaler.update()

    (early,) = run(clip).early_clips
    assert early.kind == "own"
    assert all(threshold == pytest.approx(0.5, rel=1e-4) for _, threshold, _ in early.samples)
    assert early.place is not None
    assert "gradient.mul_(0.5 / norm)" in early.place.code


def unit_norm(tensor: Tensor) -> Tensor:
    return tensor.norm() if tensor.ndim < 2 else tensor.norm(dim=1, keepdim=True)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@torch.no_grad()
def adaptive(model: nn.Module, factor: float = 0.02) -> None:
    for p in model.parameters():
        assert p.grad is not None
        limit, norm = unit_norm(p).clamp(min=1e-3) * factor, unit_norm(p.grad)
        p.grad.mul_(torch.where(norm > limit, limit / norm.clamp(min=1e-6), torch.ones_like(norm)))


def by_parameter(model: nn.Module) -> None:
    for p in model.parameters():
        assert p.grad is not None
        p.grad = p.grad * (0.5 / (p.grad.norm() + 1e-6)).clamp(max=1.0)


def values_of_one(model: nn.Module) -> None:
    model.weight.grad.clamp_(-0.25, 0.25)  # type: ignore[union-attr, operator]


def foreach(model: nn.Module) -> None:
    norms = torch._foreach_norm(gradients(model))
    factors = [(1.0 / n).clamp(max=1.0) for n in norms]
    torch._foreach_mul_(gradients(model), factors)


@pytest.mark.parametrize(
    ("clip", "code"),
    [
        (adaptive, "p.grad.mul_(torch.where("),
        (by_parameter, "p.grad = p.grad * "),
        (values_of_one, "clamp_(-0.25, 0.25)"),
        (foreach, "torch._foreach_mul_(gradients(model), factors)"),
    ],
)
def test_knows_own_clipping_of_single_units(clip: Callable[[nn.Module], None], code: str) -> None:
    def work(scaler: Any, optimizer: Any, model: nn.Module) -> None:
        clip(model)
        scaler.step(optimizer)
        scaler.update()

    (early,) = run(work).early_clips
    assert early.kind == "own"
    assert early.seen >= 4
    assert (early.of_weights is not None) == (clip is adaptive)
    assert early.place is not None
    assert code in early.place.code


def test_knows_own_clipping_of_gradients_that_are_accumulated_over_many_passes() -> None:
    def several(scaler: torch.amp.GradScaler, loss: Tensor) -> None:
        for _ in range(4):
            scaler.scale(loss / 4).backward(retain_graph=True)

    def work(scaler: Any, optimizer: Any, model: nn.Module) -> None:
        by_parameter(model)
        scaler.step(optimizer)
        scaler.update()

    (early,) = run(work, backward=several).early_clips
    assert (early.kind, early.seen) == ("own", 8)


def divide(model: nn.Module) -> None:
    for gradient in gradients(model):
        gradient.div_(4)


def average_tokens(model: nn.Module) -> None:
    tokens = 1 + torch.randint(900, (1,), generator=torch.Generator().manual_seed(len(calls)))
    calls.append(0)
    for gradient in gradients(model):
        gradient /= tokens


def freeze_rows(model: nn.Module) -> None:
    model.weight.grad[0] = 0.0  # type: ignore[index]
    model.weight.grad[1] *= 0.1  # type: ignore[index]


def look(model: nn.Module) -> None:
    calls.append(sum(float(g.norm()) for g in gradients(model)))


calls: list[float] = []


@pytest.mark.parametrize("work", [divide, average_tokens, freeze_rows, look])
def test_what_own_code_does_to_all_sizes_alike_is_no_clipping(work: Callable[[nn.Module], None]) -> None:
    def step(scaler: Any, optimizer: Any, model: nn.Module) -> None:
        work(model)
        scaler.step(optimizer)
        scaler.update()

    assert run(step, steps=14).early_clips == ()


def test_who_reads_the_scale_before_clipping_may_mean_to() -> None:
    def clip(scaler: Any, optimizer: Any, model: nn.Module) -> None:
        adaptive(model, 0.02 * scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()

    assert run(clip).early_clips == ()


def test_a_step_beside_the_scaler_is_seen_where_gradients_are_still_scaled() -> None:
    (bypass,) = run(lambda _, optimizer, __: optimizer.step() and None).bypasses
    assert (bypass.kind, bypass.scale) == ("scaled gradient", 2.0**10)
    assert bypass.place is not None
    assert "optimizer.step()" in bypass.place.code


def test_gradients_divided_by_hand_are_no_matter() -> None:
    def divide(scaler: Any, optimizer: Any, model: nn.Module) -> None:
        for p in model.parameters():
            assert p.grad is not None
            p.grad.div_(scaler.get_scale())
        optimizer.step()

    assert run(divide).bypasses == ()


def test_gradients_that_were_unscaled_are_no_matter() -> None:
    def unscale(scaler: Any, optimizer: Any, _: Any) -> None:
        scaler.unscale_(optimizer)
        optimizer.step()
        scaler.update()

    assert run(unscale).bypasses == ()


def test_a_loss_that_was_not_scaled_is_seen() -> None:
    def plain(scaler: Any, loss: Tensor) -> None:
        scaler.scale(loss)
        loss.backward()

    (bypass,) = run(right_without_unscale, backward=plain).bypasses
    assert bypass.kind == "unscaled loss"


def right_without_unscale(scaler: Any, optimizer: Any, _: Any) -> None:
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize(
    "backward",
    [
        lambda scaler, loss: (scaler.scale(loss) / 4 + 0).backward(),
        lambda scaler, loss: torch.autograd.backward(scaler.scale([loss, loss * 2])),
        lambda scaler, loss: (scaler.scale(loss) * 1 + 0).backward(gradient=torch.ones(())),
        lambda scaler, loss: (scaler.scale(loss.detach()), (loss * scaler.get_scale()).backward())[0],
    ],
)
def test_a_loss_made_of_a_scaled_one_or_scaled_by_hand_is_no_matter(backward: Any) -> None:
    assert run(right_without_unscale, backward=backward).bypasses == ()


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch disables no scaler for CUDA then")
def test_a_disabled_scaler_and_one_that_torch_disabled_are_told_apart() -> None:
    with Doctor(every=1) as doctor:
        off = torch.amp.GradScaler("cpu", enabled=False)
        with pytest.warns(UserWarning, match="CUDA is not available"):
            disabled = torch.amp.GradScaler("cuda")
        assert [(s.enabled, s.requested) for s in doctor.evidence().scalers] == [
            (False, False),
            (False, True),
        ]
    assert [off.is_enabled(), disabled.is_enabled()] == [False, False]


def test_an_empty_generator_of_parameters_warns_as_it_does_without() -> None:
    scaler, weight = torch.amp.GradScaler("cpu"), nn.Parameter(torch.ones(1))
    with Doctor(every=1):
        scaler.scale(weight.sum()).backward()
        with pytest.warns(UserWarning, match="empty generator"):
            nn.utils.clip_grad_norm_((p for p in ()), 1.0)


def wrapped() -> list[Any]:
    methods = ("__init__", "scale", "unscale_", "step", "update", "get_scale")
    return [
        *(torch.amp.GradScaler.__dict__[name] for name in methods),
        *(torch.autocast.__dict__[name] for name in ("__init__", "__enter__", "__exit__")),
        *(vars(module)["clip_grad_norm_"] for module in (nn.utils, clip_grad)),
        *(
            torch.autograd.backward,
            torch.save,
            nn.Module.load_state_dict,
            torch.optim.Optimizer.load_state_dict,
        ),
    ]


def test_leaves_nothing_behind() -> None:
    before, hooks = wrapped(), len(torch_optimizer._global_optimizer_pre_hooks)
    run(right)
    assert wrapped() == before
    assert len(torch_optimizer._global_optimizer_pre_hooks) == hooks


def test_a_watched_run_is_the_same_to_the_bit() -> None:
    def train(watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model, scaler = nn.Linear(6, 3), torch.amp.GradScaler("cpu", growth_interval=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        doctor = Doctor(every=1, probe=True) if watched else None
        if doctor is not None:
            doctor.__enter__()
        for step in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                out = model(torch.randn(8, 6) * (1e6 if step == 3 else 1))
            scaler.scale(out.float().square().mean()).backward()
            (right if step % 2 else right_without_unscale)(scaler, optimizer, model)
        if doctor is not None:
            doctor.detach()
        return [*(p.detach() for p in model.parameters()), torch.rand(3), torch.tensor(scaler.get_scale())]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))
