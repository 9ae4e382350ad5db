"""First, do no harm: a watched run is bit-identical to an unwatched one, and nothing is left behind."""

from __future__ import annotations

import copy
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
