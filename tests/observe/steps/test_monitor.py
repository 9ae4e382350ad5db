"""The step monitor: every optimizer of the process, however it is stepped."""

from __future__ import annotations

import copy
import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

from precdoctor.doctor import Doctor
from precdoctor.evidence import Bench, Parameter
from precdoctor.observe.steps.monitor import Schedule


def seen(doctor: Doctor) -> dict[str, Parameter]:
    return {p.name: p for p in doctor.evidence().parameters}


def small(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def backward(model: nn.Module) -> torch.Tensor:
    p = next(model.parameters())
    loss = model(torch.randn(4, 6, dtype=p.dtype)).float().square().mean()
    loss.backward()
    return loss


def test_sees_several_optimizers_that_take_turns() -> None:
    one, two = small(), small()
    first = torch.optim.SGD(one.parameters(), lr=0.1)
    second = torch.optim.AdamW(two.parameters(), lr=0.1)
    with Doctor(every=1) as doctor:
        for step in range(6):
            for model, optimizer in ((one, first), (two, second)) if step % 2 else ((one, first),):
                optimizer.zero_grad()
                backward(model)
                optimizer.step()
    evidence = doctor.evidence()
    assert [o.steps for o in evidence.optimizers] == [6, 3]
    assert evidence.run.steps == 6
    assert {p.optimizer for p in evidence.parameters} == {0, 1}
    assert all(
        p.updates is not None and p.updates.edq[0].edq == pytest.approx(1, abs=1e-3)
        for p in evidence.parameters
    )


def test_sees_parameter_groups_and_their_learning_rates() -> None:
    model = small()
    groups: list[dict[str, Any]] = [
        {"params": [model[0].weight, model[2].weight], "weight_decay": 0.1},
        {"params": [model[0].bias, model[2].bias], "lr": 0.5},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with Doctor(every=1) as doctor:
        for _ in range(3):
            backward(model)
            optimizer.step()
            schedule.step()
    first, second = doctor.evidence().optimizers[0].groups
    assert (first.lr_first, first.lr_last, first.lr_max) == pytest.approx((0.1, 0.025, 0.1))
    assert (second.lr_first, second.weight_decay, second.tensors) == pytest.approx((0.5, 0.0, 2))
    assert first.lr_future[0] == pytest.approx((1, 0.00625))


def test_a_group_added_later_is_observed() -> None:
    model = small()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with Doctor(model, every=1) as doctor:
        for step in range(4):
            if step == 2:
                optimizer.add_param_group({"params": model[2].parameters()})
            backward(model)
            optimizer.step()
    assert seen(doctor)["2.weight"].gradient.present == 2
    assert seen(doctor)["2.weight"].optimizer == 0


def test_a_new_optimizer_over_the_same_parameters_goes_on_with_their_ledgers() -> None:
    model = small()
    with Doctor(model, every=1) as doctor:
        for _ in range(3):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(2):
                backward(model)
                optimizer.step()
    assert seen(doctor)["0.weight"].gradient.present == 6


def test_steps_skipped_by_the_gradient_scaler_are_not_steps() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    with Doctor(every=1) as doctor:
        for step in range(4):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 6)).square().mean() * (float("inf") if step == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    evidence = doctor.evidence()
    assert evidence.run.steps == 3
    assert evidence.scalers[0].enabled
    assert evidence.scalers[0].scale == 2.0**3
    assert all(
        p.updates is not None and p.updates.edq[0].edq == pytest.approx(1, abs=1e-3)
        for p in evidence.parameters
    )


def test_a_fused_step_under_a_gradient_scaler_is_replayed_unscaled() -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with Doctor(every=1) as doctor:
        for step in range(4):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 6)).square().mean() * (float("inf") if step == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    for p in doctor.evidence().parameters:
        assert p.updates is not None
        assert p.updates.edq[0].edq == pytest.approx(1, abs=1e-3)


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another one, over the same parameters."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})

    def step(self) -> None:  # type: ignore[override]
        self.inner.step()


def test_an_optimizer_inside_another_is_counted_once() -> None:
    model = small()
    optimizer = Wrapper(torch.optim.AdamW(model.parameters(), lr=0.1))
    with Doctor(every=1) as doctor:
        for _ in range(3):
            backward(model)
            optimizer.step()
    for p in doctor.evidence().parameters:
        assert p.gradient.present == 3
        assert p.updates is not None
        assert p.updates.replay == "elementwise"
        assert p.updates.edq[0].edq == pytest.approx(1, abs=1e-3)


class Flaky(torch.optim.SGD):
    """Raises in its second step; calls its parent's hooked step in the others."""

    calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        if self.calls == 2:
            raise ValueError("out of luck")
        return super().step(closure)


def test_a_step_that_raises_does_not_spoil_the_next() -> None:
    model = small()
    optimizer = Flaky(model.parameters(), lr=0.1)
    with Doctor(every=1) as doctor:
        for _ in range(4):
            backward(model)
            if optimizer.calls == 1:
                with pytest.raises(ValueError, match="out of luck"):
                    optimizer.step()
            else:
                optimizer.step()
    assert doctor.evidence().run.steps == 3


def test_only_watches_the_optimizer_it_was_given() -> None:
    model, other = small(), small()
    mine, theirs = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    with Doctor(model, mine, every=1) as doctor:
        for m, optimizer in ((model, mine), (other, theirs)):
            backward(m)
            optimizer.step()
    evidence = doctor.evidence()
    assert len(evidence.optimizers) == 1
    assert {p.name for p in evidence.parameters} == {name for name, _ in model.named_parameters()}


def test_a_model_turned_into_another_format_is_observed_anew() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, every=1) as doctor:
        for step in range(6):
            if step == 2:
                model.to(torch.bfloat16)
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    assert seen(doctor)["0.weight"].format == "bfloat16"
    assert seen(doctor)["0.weight"].gradient.present == 4


@pytest.mark.parametrize("kind", [torch.optim.SparseAdam, torch.optim.Adagrad, torch.optim.SGD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_gradients_are_replayed(kind: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(10, 4, sparse=True).to(dtype)
    twin = copy.deepcopy(table).double()
    pairs = [(module, kind(module.parameters(), lr=1e-3)) for module in (table, twin)]
    intended, applied = [], []
    with Doctor(table, every=1) as doctor:
        for step in range(3):
            before = table.weight.detach().double()
            twin.weight.data.copy_(before)
            for module, optimizer in pairs:
                optimizer.zero_grad()
                module(torch.tensor([step, step, 2])).sum().backward()
                optimizer.step()
            intended.append(twin.weight.detach() - before)
            applied.append(table.weight.detach().double() - before)
    u, a = torch.stack(intended), torch.stack(applied)
    weight = seen(doctor)["weight"]
    assert weight.updates is not None
    assert (weight.updates.replay, weight.updates.intended) == ("elementwise", 20)
    assert weight.updates.lost_share == float((a[u != 0] == 0).double().mean())
    edq = next(e.edq for e in weight.updates.edq if e.window == 1)
    # the optimizer's own state is rounded as well, and the replay begins with it
    assert edq == pytest.approx(float((a * u).sum() / (u * u).sum()), rel=1e-3)
    assert (weight.gradient.present, weight.gradient.absent, weight.gradient.all_zero) == (3, 0, 0)


def test_a_gradient_that_cannot_be_read_is_not_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precdoctor.observe.steps.lane.WHOLE_BUDGET", 8)
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1)
    with Doctor(every=1) as doctor:
        for _ in range(3):
            optimizer.zero_grad()
            table(torch.tensor([1, 2])).square().sum().backward()
            optimizer.step()
    (weight,) = (p for p in doctor.evidence().parameters if p.shape == (10, 4))
    assert (weight.gradient.present, weight.gradient.absent) == (0, 0)


@pytest.mark.parametrize(
    ("number", "last", "spent", "due"),
    [(0, None, 0.0, True), (9, 8, 9.0, True), (15, 9, 0.0, False), (25, 9, 0.0, True), (25, 9, 3.0, False)],
)
def test_the_first_steps_are_observed_and_then_as_the_budget_allows(
    number: int, last: int | None, spent: float, due: bool
) -> None:
    assert Schedule(budget=0.02).due(number, last, spent, elapsed=100.0) is due


def test_trying_an_optimizer_once_takes_no_step_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> Bench:
        start = time.process_time()
        while time.process_time() - start < 0.5:
            pass
        return Bench(group=0, format="bfloat16", why_not="not tried")

    monkeypatch.setattr("precdoctor.observe.steps.monitor.bench", slow)
    monkeypatch.setattr(Doctor, "look", lambda *_, **__: None)  # walks over all objects of the test process
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([p], lr=0.1)
    with Doctor(budget=0.25, stride=1) as doctor:
        for _ in range(15):
            p.grad = torch.ones_like(p)
            # a step that takes its time, though less than the trial did
            start = time.process_time()
            while time.process_time() - start < 0.02:
                pass
            optimizer.step()
    assert doctor.evidence().run.observed == 15


def test_every_n_observes_every_nth_whatever_it_costs() -> None:
    assert [n for n in range(7) if Schedule(every=3).due(n, None, 99.0, 1.0)] == [0, 3, 6]


def test_the_timeline_covers_all_steps() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(every=1) as doctor:
        for _ in range(40):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    evidence = doctor.evidence()
    assert evidence.timeline[-1] == 40
    assert list(evidence.timeline) == sorted(set(evidence.timeline))
    for p in (p for p in evidence.parameters if p.optimizer == 0):
        assert p.updates is not None
        assert len(p.updates.timeline) == len(evidence.timeline)


def test_reports_on_the_step_at_hand() -> None:
    model = small(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    doctor = Doctor.attach(model, optimizer)
    assert doctor.step_report() == "step 0: no update was seen yet"
    backward(model)
    optimizer.step()
    assert "step 1: 4 parameters" in doctor.step_report()
    assert "frozen: 0.weight" in doctor.step_report()
    doctor.detach()


@pytest.mark.parametrize("options", [{"every": 0}, {"watch": -1}])
def test_refuses_options_that_make_no_sense(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Doctor(**options)


def test_threads_train_side_by_side() -> None:
    def train() -> None:
        model = small()
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(20):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()

    with Doctor(every=1) as doctor:
        threads = [threading.Thread(target=train) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    evidence = doctor.evidence()
    assert [o.steps for o in evidence.optimizers] == [20, 20, 20]
    assert not evidence.run.limits
    for p in evidence.parameters:
        assert p.updates is None or not p.updates.edq or p.updates.edq[0].edq == pytest.approx(1, abs=1e-3)


def test_a_parameter_that_grows_is_observed_anew() -> None:
    table = nn.Embedding(5, 4)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    with Doctor(every=1) as doctor:
        for step in range(6):
            if step == 3:
                table.weight.grad = None
                table.weight.data = torch.cat([table.weight.data, torch.randn(2, 4)])
            optimizer.zero_grad()
            table(torch.arange(table.num_embeddings)).square().sum().backward()
            optimizer.step()
    assert doctor.evidence().run.observed == 6
    assert not doctor.evidence().run.limits


def test_settings_that_are_no_numbers_are_passed_over() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0].update(betas=(0.9, None), eps=(None, 1e-3), clip=[1.0])
    with Doctor(every=1) as doctor:
        backward(model)
        optimizer.step()
    assert doctor.evidence().optimizers[0].groups[0].betas == (0.9,)
    assert not doctor.evidence().run.limits


def test_gradients_that_another_hook_clips_are_read_after_it() -> None:
    model = small(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)

    def halve(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for p in optimizer.param_groups[0]["params"]:
            p.grad.mul_(0.25)

    optimizer.register_step_pre_hook(halve)
    with Doctor(every=1) as doctor:
        for _ in range(5):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    for p in doctor.evidence().parameters:
        assert p.updates is not None
        assert p.updates.replay == "elementwise"
        assert p.updates.edq[0].edq == pytest.approx(1, abs=0.1)
