"""What all wrappers have in common: how a step is made around any optimizer."""

from __future__ import annotations

import copy
import pickle
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from precdoctor.remedies import Float32State, KahanSummation, MasterWeights, StochasticRounding
from precdoctor.remedies.wrappers import Float32Step
from tests.reference.wrappers import MasterLoop
from tests.remedies.wrappers.build import OPTIMIZERS, WRAPPERS, Make, adamw, bits, net, train, weight

every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS)
SAMPLE = Path(__file__).parents[3] / "sample_models/bf16_moe_lm/moe_arch/training/muon_optimizer.py"
MAKES: dict[str, Make] = {
    **OPTIMIZERS,
    "Muon of the sample program": lambda p: runpy.run_path(str(SAMPLE))["Muon"](
        [q for q in p if q.ndim == 2]
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MAKES)
def test_masters_of_any_optimizer_equal_the_loop_written_by_hand(name: str, dtype: torch.dtype) -> None:
    wrapped, by_hand = net(dtype), net(dtype)
    optimizer = MasterWeights(MAKES[name](list(wrapped.parameters())))
    loop = MasterLoop(list(by_hand.parameters()), MAKES[name])
    start = bits(wrapped)
    train(wrapped, optimizer, 6)
    train(by_hand, loop, 6)
    assert bits(wrapped) == bits(by_hand)
    assert bits(wrapped) != start


@every_wrapper
@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdamW foreach", "AdamW fused", "Adafactor", "Muon"])
def test_a_float32_model_is_stepped_as_without(name: str, wrap: type[Float32Step]) -> None:
    wrapped, plain = net(torch.float32), net(torch.float32)
    optimizer, other = (
        wrap(OPTIMIZERS[name](list(wrapped.parameters()))),
        OPTIMIZERS[name](list(plain.parameters())),
    )
    torch.manual_seed(5)
    train(wrapped, optimizer, 5)
    train(plain, other, 5)
    assert bits(wrapped) == bits(plain)
    assert optimizer.held_bytes() == 0


@every_wrapper
@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "AdamW tensor lr"])
def test_state_is_kept_in_float32_and_weights_in_their_format(name: str, wrap: type[Float32Step]) -> None:
    model = net()
    optimizer = wrap(OPTIMIZERS[name](list(model.parameters())))
    train(model, optimizer, 3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    tensors = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert all(t.dtype == torch.float32 for t in tensors)
    assert all(p in optimizer.optimizer.state for p in optimizer.state)


@every_wrapper
def test_a_weight_stays_the_object_it_is(wrap: type[Float32Step]) -> None:
    p = weight()
    gradient = torch.full_like(p, 0.25)
    p.grad = gradient
    optimizer = wrap(torch.optim.SGD([p], lr=0.5))
    group, storage, version = optimizer.param_groups[0]["params"], p.data_ptr(), p._version
    optimizer.step()
    assert optimizer.param_groups[0]["params"] is group
    assert group[0] is p
    assert (p.data_ptr(), p.dtype, p.requires_grad, p.is_leaf) == (storage, torch.bfloat16, True, True)
    assert p._version > version  # whoever caches what it was sees that it has changed
    assert p.grad is gradient
    assert gradient.eq(0.25).all()
    assert p.eq(0.875).all()


@every_wrapper
def test_the_gradient_accumulator_stays(wrap: type[Float32Step]) -> None:
    """DistributedDataParallel hangs its hooks on it."""
    p, fired = weight(), []
    accumulator = p.expand_as(p).grad_fn.next_functions[0][0]
    accumulator.register_hook(lambda *_: fired.append(1))
    optimizer = wrap(adamw([p]))
    for _ in range(3):
        p.sum().backward()
        optimizer.step()
    assert len(fired) == 3


@every_wrapper
def test_the_optimizer_may_be_stepped_itself(wrap: type[Float32Step]) -> None:
    first, second = net(), net()
    outside, inside = wrap(adamw(first.parameters())), wrap(adamw(second.parameters()))
    if isinstance(outside, StochasticRounding) and isinstance(inside, StochasticRounding):
        inside.seed = outside.seed
    train(first, outside, 4)
    train(second, inside.optimizer, 4)
    assert bits(first) == bits(second)


def test_formats_may_be_mixed_in_one_optimizer() -> None:
    parts = [weight(dtype=d) for d in (torch.bfloat16, torch.float16, torch.float32, torch.float64)]
    groups = [{"params": parts[:3]}, {"params": parts[3:], "lr": 2.0**-7}]
    optimizer = MasterWeights(torch.optim.AdamW(groups, lr=2.0**-7, weight_decay=0.0, foreach=True))
    for p in parts:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [p.dtype for p in parts] == [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    assert all(p.float().allclose(torch.tensor(1 - 2.0**-7), atol=1e-3) for p in parts)
    assert [optimizer.state[p]["exp_avg"].dtype for p in parts] == [torch.float32] * 3 + [torch.float64]
    assert optimizer.held_bytes() == 2 * 8 * 4


@every_wrapper
def test_parameters_without_gradient_are_left_alone(wrap: type[Float32Step]) -> None:
    p, absent, frozen = weight(), weight(), weight().requires_grad_(False)
    optimizer = wrap(adamw([p, absent, frozen]))
    p.grad = torch.ones_like(p)
    versions = absent._version, frozen._version
    for _ in range(3):
        optimizer.step()
    assert absent.eq(1).all()
    assert frozen.eq(1).all()
    assert absent.grad is None
    assert (absent._version, frozen._version) == versions
    assert set(optimizer.state) == {p}


@every_wrapper
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own, once per process
@pytest.mark.parametrize("make", [torch.optim.SparseAdam, torch.optim.Adagrad, torch.optim.SGD])
def test_sparse_gradients(make: Any, wrap: type[Float32Step]) -> None:
    table = nn.Embedding(10, 4, sparse=True).bfloat16()
    before = table.weight.detach().clone()
    optimizer = wrap(make(table.parameters(), lr=0.5))
    for _ in range(2):
        optimizer.zero_grad()
        table(torch.tensor([1, 3, 3])).float().sum().backward()
        optimizer.step()
    moved = (table.weight != before).any(1)
    assert moved.nonzero().view(-1).tolist() == [1, 3]


@every_wrapper
def test_groups_may_be_added(wrap: type[Float32Step]) -> None:
    p, q = weight(), weight()
    optimizer = wrap(torch.optim.Adagrad([p], lr=0.5))  # makes its state at once, in the weight's format
    for added in ((), (q,)):
        for new in added:
            optimizer.add_param_group({"params": [new], "lr": 0.25})
        for x in (p, *added):
            x.grad = torch.ones_like(x)
        optimizer.step()
    assert optimizer.param_groups[1]["lr"] == 0.25
    assert q.eq(0.75).all()
    assert {s["sum"].dtype for s in optimizer.state.values()} == {torch.float32}


def test_state_from_before_the_wrapping_is_widened() -> None:
    model = net()
    inner = adamw(model.parameters())
    train(model, inner, 2)
    before = [s["exp_avg"].clone() for s in inner.state.values()]
    train(model, MasterWeights(inner), 1)
    assert all(s["exp_avg"].dtype == torch.float32 for s in inner.state.values())
    assert [b.dtype for b in before] == [torch.bfloat16] * 6


# ---------------------------------------------------------------------- hooks


@every_wrapper
def test_hooks_of_others_see_the_weights(wrap: type[Float32Step]) -> None:
    p, seen = weight(), []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.append(optimizer.param_groups[0]["params"][0] is p)

    inner = adamw([p])
    inner.register_step_pre_hook(look)
    inner.register_step_post_hook(look)
    optimizer = wrap(inner)
    optimizer.register_step_pre_hook(look)
    handle = optimizer.register_step_post_hook(look)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert seen == [True] * 4
    handle.remove()
    optimizer.step()
    assert len(seen) == 7


def test_a_step_that_calls_its_parents_step_is_one_step() -> None:
    class Child(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    p = weight()
    torch.optim.SGD([weight()], lr=1.0)  # torch hooks a class at its first instance
    optimizer = KahanSummation(Child([p], lr=2.0**-10))
    p.grad = torch.ones_like(p)
    for _ in range(8):
        optimizer.step()
    assert p.eq(1 - 2.0**-7).all()


def test_an_optimizer_made_of_others() -> None:
    class Both(torch.optim.Optimizer):
        def __init__(self, first: Any, second: Any) -> None:
            self.parts = [torch.optim.SGD(first, lr=2.0**-10), torch.optim.AdamW(second, lr=1e-3)]
            super().__init__([*first, *second], {})

        def step(self, closure: Any = None) -> None:
            for part in self.parts:
                part.step()

    p, q = weight(), weight()
    optimizer = MasterWeights(Both([p], [q]))
    for _ in range(8):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        optimizer.step()
    assert p.eq(1 - 2.0**-7).all()
    assert q.float().allclose(torch.tensor(0.992), atol=4e-3)
    assert q in optimizer.optimizer.parts[1].state  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- closures


@every_wrapper
def test_a_closure_runs_the_model_in_its_own_format(wrap: type[Float32Step]) -> None:
    torch.manual_seed(0)
    x, target = torch.randn(64, 4), torch.randn(4, 1)
    model = nn.Linear(4, 1).bfloat16()
    optimizer = wrap(torch.optim.LBFGS(model.parameters(), max_iter=8, history_size=4))
    formats, losses = set(), []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        formats.update(p.dtype for p in model.parameters())
        loss = (model(x.bfloat16()).float() - x @ target).square().mean()
        loss.backward()
        return loss

    for _ in range(4):
        losses.append(optimizer.step(closure).item())
    assert formats == {torch.bfloat16}
    assert losses[-1] < 0.01 * losses[0]
    assert optimizer.step(closure=closure) is not None


def test_a_step_with_two_evaluations() -> None:
    """Sharpness-aware minimisation moves the weights, clears gradients and evaluates again."""
    seen: list[float] = []

    class Sharp(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            evaluate = torch.enable_grad()(closure)
            evaluate()
            p = self.param_groups[0]["params"][0]
            p.add_(0.25)
            self.zero_grad()
            evaluate()
            p.sub_(0.25)
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"])

    p = weight()
    optimizer = MasterWeights(Sharp([p], lr=2.0**-10))

    def closure() -> torch.Tensor:
        seen.append(p[0].item())
        loss = (p.float() * 2).sum()
        loss.backward()
        return loss

    for _ in range(4):
        p.grad = None
        optimizer.step(closure)
    assert seen[:2] == [1.0, 1.25]
    assert p.eq(1 - 2.0**-7).all()  # 4 x 2^-10 x 2: the first gradient was cleared


@every_wrapper
def test_gradients_cleared_inside_a_step_are_cleared(wrap: type[Float32Step]) -> None:
    class Clears(torch.optim.SGD):
        to_none = True

        def step(self, closure: Any = None) -> Any:
            super().step()
            self.zero_grad(set_to_none=self.to_none)

    p = weight()
    optimizer = wrap(Clears([p], lr=0.5))
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert p.grad is None
    p.grad = torch.ones_like(p)
    Clears.to_none = False
    optimizer.step()
    assert p.grad.eq(0).all()


# ---------------------------------------------------------------------- errors


class Raises(torch.optim.SGD):
    now = False

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        if self.now:
            raise RuntimeError("out of memory")


@every_wrapper
@pytest.mark.parametrize("through", ["wrapper", "optimizer"])
def test_a_step_that_raises_leaves_the_weights_and_goes_on_later(
    through: str, wrap: type[Float32Step]
) -> None:
    p = weight()
    inner = Raises([p], lr=2.0**-7)
    optimizer = wrap(inner)
    stepped = optimizer if through == "wrapper" else inner
    p.grad = torch.ones_like(p)
    stepped.step()
    inner.now = True
    with pytest.raises(RuntimeError, match="out of memory"):
        stepped.step()
    assert p.eq(1 - 2.0**-7).all()
    optimizer.zero_grad(set_to_none=False)
    assert inner.param_groups[0]["params"][0] is p
    assert p.grad.eq(0).all()
    p.grad = torch.ones_like(p)
    inner.now = False
    stepped.step()
    assert p.eq(1 - 2.0**-6).all()


@every_wrapper
def test_a_closure_that_raises_puts_all_back(wrap: type[Float32Step]) -> None:
    p, calls = weight(), []
    optimizer = wrap(torch.optim.LBFGS([p], max_iter=8))

    def closure() -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        optimizer.zero_grad()
        loss = p.float().square().sum()
        loss.backward()
        return loss

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert p.eq(1).all()
    assert optimizer.param_groups[0]["params"][0] is p
    assert p.grad is not None
    assert wrap(torch.optim.SGD([p], lr=0.5)).step(closure).item() == 8.0


def test_says_what_it_can_not_wrap() -> None:
    with pytest.raises(TypeError, match=r"goes around a torch.optim.Optimizer, not a list"):
        MasterWeights([weight()])  # type: ignore[arg-type]
    inner = adamw([weight()])
    wrapped = KahanSummation(inner)
    for again in (inner, wrapped):
        with pytest.raises(ValueError, match="AdamW is wrapped in KahanSummation already"):
            MasterWeights(again)

    class Facade(torch.optim.Optimizer):
        def __init__(self) -> None:
            self.optimizer = inner

    with pytest.raises(TypeError, match="Facade has no step hooks of its own"):
        MasterWeights(Facade())


# ---------------------------------------------------------------------- what surrounds an optimizer


@every_wrapper
def test_schedulers_write_to_the_optimizers_groups(wrap: type[Float32Step]) -> None:
    p = weight()
    optimizer = wrap(torch.optim.SGD([p], lr=1.0))
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.5, total_iters=2)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, decay], milestones=[2])
    rates = []
    for _ in range(4):  # warnings are errors: the scheduler sees that the wrapper was stepped
        p.grad = torch.zeros_like(p)
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.optimizer.param_groups[0]["lr"])
    assert rates == [0.75, 1.0, 0.5, 0.25]
    copied = pickle.loads(pickle.dumps(optimizer))
    assert copied.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_under_a_grad_scaler_gradients_are_unscaled_in_float32(dtype: torch.dtype, fused: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    p, master = weight(dtype=dtype), weight(dtype=torch.float32)
    optimizer = MasterWeights(torch.optim.Adam([p], lr=2.0**-7, fused=fused, eps=1e-9))
    by_hand = torch.optim.Adam([master], lr=2.0**-7, fused=fused, eps=1e-9)
    for step in range(4):
        optimizer.zero_grad()
        # 1e-8 is nothing in float16; times 2^14 it is something
        scaler.scale((p.float() * (1e-8 if step != 2 else float("inf"))).sum()).backward()
        master.grad = p.grad.float() / scaler.get_scale()
        scaler.step(optimizer)
        if step != 2:
            by_hand.step()
        scaler.update()
    assert torch.equal(p, master.to(dtype))
    assert p.ne(1).all()
    assert scaler.get_scale() == 2.0**13
    assert not hasattr(optimizer, "found_inf")


def test_unscaling_before_the_step_is_not_done_twice() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    p = weight()
    optimizer = MasterWeights(torch.optim.SGD([p], lr=2.0**-6))
    scaler.scale(p.float().sum() * 16).backward()
    scaler.unscale_(optimizer)
    assert nn.utils.clip_grad_norm_([p], 1e9) > 0
    scaler.step(optimizer)
    assert p.eq(0.75).all()


def test_repr_says_what_is_around_what() -> None:
    assert repr(MasterWeights(adamw([weight()]))).startswith("MasterWeights around AdamW (")
    wrapped = StochasticRounding(adamw([weight()]), seed=3)
    assert repr(wrapped).startswith("StochasticRounding (seed 3) around AdamW (")


@pytest.mark.parametrize(
    ("wrap", "held"), [(Float32State, 0), (StochasticRounding, 0), (KahanSummation, 2), (MasterWeights, 4)]
)
def test_bytes_per_parameter_are_those_of_the_docstrings(wrap: type[Float32Step], held: int) -> None:
    model = net()
    count = sum(p.numel() for p in model.parameters())
    optimizer = wrap(adamw(model.parameters()))
    train(model, optimizer, 2)
    assert optimizer.held_bytes() == held * count
    moments = [s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    model_bytes = sum(2 * p.numel() * p.element_size() for p in model.parameters())
    total = (model_bytes + sum(m.nbytes for m in moments) + optimizer.held_bytes()) / count
    assert total == 12 + held
    assert f"parameter, Adam: {12 + held} (" in " ".join((wrap.__doc__ or "").split())


@every_wrapper
def test_unwrapping_gives_the_optimizer_back(wrap: type[Float32Step]) -> None:
    model = net()
    optimizer = wrap(adamw(model.parameters()))
    train(model, optimizer, 2)
    inner = optimizer.unwrap()
    assert not inner._optimizer_step_pre_hooks
    assert not inner._optimizer_step_post_hooks
    assert {s["exp_avg"].dtype for s in inner.state.values()} == {torch.bfloat16}
    train(model, inner, 2)
    train(model, MasterWeights(inner), 2)


# ---------------------------------------------------------------------- saving


@every_wrapper
@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdamW fused", "Adafactor", "Muon"])
def test_training_resumed_from_a_file_equals_training_that_went_on(
    name: str, wrap: type[Float32Step], tmp_path: Any
) -> None:
    model = net()
    optimizer = wrap(OPTIMIZERS[name](list(model.parameters())))
    train(model, optimizer, 5)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "all.pt")
    train(model, optimizer, 5, first=5)

    saved = torch.load(tmp_path / "all.pt", weights_only=True)
    resumed = net(seed=1)
    again = wrap(OPTIMIZERS[name](list(resumed.parameters())))
    again.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["model"])
    train(resumed, again, 5, first=5)
    assert bits(resumed) == bits(model)


@every_wrapper
def test_checkpoints_of_the_optimizer_alone_go_in_and_out(wrap: type[Float32Step]) -> None:
    model = net()
    plain = adamw(model.parameters())
    train(model, plain, 3)
    checkpoint = copy.deepcopy(plain.state_dict())
    optimizer = wrap(adamw(model.parameters()))
    optimizer.load_state_dict(checkpoint)
    assert {s["exp_avg"].dtype for s in optimizer.state.values()} == {torch.float32}
    assert optimizer.held_bytes() == 0
    train(model, optimizer, 2)
    fresh = adamw(model.parameters())
    fresh.load_state_dict(optimizer.state_dict())
    assert {s["exp_avg"].dtype for s in fresh.state.values()} == {torch.bfloat16}
    train(model, fresh, 1)


def test_a_checkpoint_of_another_wrapper_gives_its_state_alone() -> None:
    model = net()
    first = MasterWeights(adamw(model.parameters()))
    train(model, first, 2)
    second = KahanSummation(adamw(model.parameters()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.held_bytes() == 0
    assert len(second.state) == 6
    with pytest.raises(ValueError, match="fits no parameter of this optimizer"):
        MasterWeights(adamw([weight()])).load_state_dict(first.state_dict())


@every_wrapper
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_model_and_optimizer_trains_on_alike(clone: Any, wrap: type[Float32Step]) -> None:
    model = net()
    optimizer = wrap(adamw(model.parameters()))
    train(model, optimizer, 3)
    other, copied = clone((model, optimizer))
    assert copied.optimizer is not optimizer.optimizer
    train(model, optimizer, 3, first=3)
    assert bits(model) != bits(other)
    train(other, copied, 3, first=3)
    assert bits(model) == bits(other)
