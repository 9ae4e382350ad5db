"""First, do no harm: a watched run is bit-identical to an unwatched one, and nothing is left behind."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

from precdoctor.doctor import Doctor

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "AdamW tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3), foreach=False),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adamax": lambda p: torch.optim.Adamax(p),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "RAdam": lambda p: torch.optim.RAdam(p),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "Muon": lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=1e-3),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(12, 40), nn.LayerNorm(40), nn.ReLU(), nn.Dropout(0.2), nn.Linear(40, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def trained(
    make: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype, watch: bool, steps: int = 6
) -> Any:
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    model = Net().to(dtype)
    optimizer = make(list(model.parameters()))
    doctor = Doctor.attach(every=1, probe=True) if watch else None
    for step in range(steps):
        x = torch.randn(8, 12).to(dtype)
        loss = model(x).float().square().mean()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        loss.backward()
        optimizer.step()
    if doctor is not None:
        doctor.detach()
        assert doctor.evidence().run.observed == steps
    generators = (torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist())
    return copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()), generators


def identical(a: Any, b: Any) -> bool:
    """Compare nested values bit by bit (NaN equals itself)."""
    if isinstance(a, torch.Tensor):
        same_kind = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return same_kind and torch.equal(
            a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(identical(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_watched_run_is_bit_identical(name: str, dtype: torch.dtype) -> None:
    plain, watched = (trained(OPTIMIZERS[name], dtype, watch) for watch in (False, True))
    for part, (a, b) in zip(
        ("weights", "optimizer state", "random numbers"), zip(plain, watched, strict=True), strict=True
    ):
        assert identical(a, b), f"{part} differ"


def test_leaves_no_hook_behind() -> None:
    module_hooks = nn.modules.module._global_forward_pre_hooks
    compile_before = torch.compile
    trained(OPTIMIZERS["AdamW"], torch.float32, True, steps=2)
    assert not torch_optimizer._global_optimizer_pre_hooks
    assert not torch_optimizer._global_optimizer_post_hooks
    assert not module_hooks
    assert torch.compile is compile_before


def test_an_exception_in_the_run_leaves_no_hook_behind() -> None:
    with pytest.raises(ZeroDivisionError), Doctor(probe=True):
        raise ZeroDivisionError
    assert not torch_optimizer._global_optimizer_pre_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_does_not_keep_a_dead_model_alive() -> None:
    with Doctor(every=1):
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(2, 12)).sum().backward()
        optimizer.step()
        weight = weakref.ref(model.body[0].weight)
        storage = weakref.ref(model.body[0].weight.untyped_storage())
        del model, optimizer
        gc.collect()
        assert weight() is None
        assert storage() is None


def test_a_step_under_a_default_device_or_in_inference_mode_goes_through() -> None:
    model = Net().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Doctor(every=1) as doctor:
        for mode in (torch.device("meta"), torch.inference_mode(), torch.no_grad(), torch.device("cpu")):
            optimizer.zero_grad()
            model(torch.randn(8, 12).bfloat16()).float().square().mean().backward()
            with mode:
                optimizer.step()
    run = doctor.evidence().run
    assert run.observed == 4
    assert not run.limits


def test_our_own_failure_ends_observing_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a defect of ours")

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(every=1) as doctor:
        for step in range(4):
            if step == 1:
                monkeypatch.setattr(doctor._monitor, "_snapshot", fail)
                monkeypatch.setattr(doctor._registry, "look", fail)
            optimizer.zero_grad()
            model(torch.randn(8, 12)).square().mean().backward()
            optimizer.step()
    run = doctor.evidence().run
    assert (run.steps, run.observed) == (4, 1)
    assert run.limits == ("observing failed (RuntimeError: a defect of ours)",)


def test_an_interrupt_inside_the_hook_reaches_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(8, 12)).square().mean().backward()
    with Doctor(every=1) as doctor:
        with monkeypatch.context() as patched:
            patched.setattr(doctor._monitor, "_snapshot", interrupt)
            with pytest.raises(KeyboardInterrupt):
                optimizer.step()
        optimizer.step()
    assert doctor.evidence().run.observed == 1


def test_does_not_keep_the_state_of_a_dead_optimizer_or_moved_weights_alive() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    with Doctor(every=1):
        for _ in range(2):
            model(torch.randn(2, 12)).sum().backward()
            optimizer.step()
        weight = model.body[0].weight
        state = weakref.ref(optimizer.state[weight]["exp_avg"].untyped_storage())
        moved = weakref.ref(weight.data.untyped_storage())
        del optimizer
        weight.data = weight.data.clone()
        gc.collect()
        assert state() is None
        assert moved() is None


class Loud(torch.optim.SGD):
    """Prints in every step."""

    def step(self, closure: Any = None) -> Any:
        print("step")  # noqa: T201
        return super().step(closure)


def test_what_an_optimizer_prints_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    model = Net().bfloat16()
    optimizer = Loud(model.parameters(), lr=0.1)
    with Doctor(every=1):
        for _ in range(3):
            model(torch.randn(2, 12).bfloat16()).sum().backward()
            optimizer.step()
    assert capsys.readouterr().out == "step\n" * 3


trained_by_name: nn.Module


class ByName(torch.optim.Optimizer):
    """Takes the model from a global variable instead of its own groups."""

    def step(self) -> None:  # type: ignore[override]
        for p in trained_by_name.parameters():
            p.data.sub_(p.grad, alpha=0.1)  # type: ignore[arg-type]


class ByPartial(torch.optim.Optimizer):
    """Calls itself through a stored function, which a copy would share."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.count = 0
        self.update = functools.partial(self.one, 0.1)

    def one(self, rate: float, p: torch.Tensor) -> None:
        self.count += 1
        self.state[p]["seen"] = self.count
        p.data.sub_(p.grad, alpha=rate)  # type: ignore[arg-type]

    def step(self) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            self.update(p)


@pytest.mark.parametrize("kind", [ByName, ByPartial])
def test_an_optimizer_whose_copy_would_reach_the_run_is_not_replayed(kind: Any) -> None:
    global trained_by_name
    weights, states = [], []
    for watch in (False, True):
        torch.manual_seed(0)
        model = trained_by_name = Net()
        optimizer = kind(list(model.parameters()), *([{}] if kind is ByName else []))
        with Doctor(every=1) if watch else contextlib.nullcontext():
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(4, 12)).square().mean().backward()
                optimizer.step()
        weights.append(copy.deepcopy(model.state_dict()))
        states.append(copy.deepcopy(optimizer.state_dict()["state"]))
    assert identical(*weights)
    assert identical(*states)


def test_weights_can_be_swapped_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(every=1):
        model(torch.randn(4, 12)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.load_state_dict(model.state_dict())  # refuses tensors with a weak reference


def test_a_model_per_task_is_not_looked_at_again_and_again() -> None:
    looks = 0
    with Doctor(budget=0.0) as doctor:
        look = doctor._registry.look

        def counted(optimizers: Any) -> None:
            nonlocal looks
            looks += 1
            look(optimizers)

        doctor._registry.look = counted  # type: ignore[method-assign]
        for _ in range(30):
            model = nn.Linear(3, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(4):
                model(torch.randn(2, 3)).sum().backward()
                optimizer.step()
    assert looks < 30
    assert len(doctor.evidence().optimizers) == 30
