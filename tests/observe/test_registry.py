"""Names, owners, masters and orphans."""

from __future__ import annotations

import torch
from torch import nn

from precdoctor.doctor import Doctor
from precdoctor.evidence import Evidence
from precdoctor.observe.models import Models, stripped
from tests.observe.steps.test_monitor import backward, small


def test_strips_what_wrappers_put_in_front() -> None:
    assert stripped("module._orig_mod.blocks.0._fsdp_wrapped_module.norm.weight") == "blocks.0.norm.weight"


def test_the_larger_model_keeps_the_plain_names() -> None:
    large, little = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), nn.ModuleList([nn.Linear(2, 2)])
    models = Models()
    models.refresh()
    owner = models.owner(large[0].weight)
    other = models.owner(little[0].weight)
    assert owner is not None
    assert other is not None
    assert owner.name == "0.weight"
    assert other.name.endswith("0.weight")
    assert other.name != owner.name
    assert owner.root != other.root


class Master:
    """Float32 masters outside the model, copied into it after each step."""

    def __init__(self, model: nn.Module) -> None:
        self.pairs = [(p, p.detach().float().clone().requires_grad_()) for p in model.parameters()]
        self.optimizer = torch.optim.AdamW([m for _, m in self.pairs], lr=1e-4)

    def step(self) -> None:
        for p, m in self.pairs:
            m.grad = None if p.grad is None else p.grad.float()
        self.optimizer.step()
        with torch.no_grad():
            for p, m in self.pairs:
                p.copy_(m)
                p.grad = None


def trained() -> Evidence:
    model = small(torch.bfloat16)
    master = Master(model)
    with Doctor(every=1) as doctor:
        for _ in range(6):
            backward(model)
            master.step()
    return doctor.evidence()


def test_recognises_masters_that_live_outside_the_optimizer() -> None:
    evidence = trained()
    masters = [p for p in evidence.parameters if p.master_of is not None]
    copies = [p for p in evidence.parameters if p.copy_of_master]
    assert sorted(p.master_of or "" for p in masters) == sorted(p.name for p in copies)
    assert len(masters) == 4
    assert all(p.format == "float32" for p in masters)
    assert not evidence.optimizers[0].stale


def test_finds_the_trained_parameter_that_no_optimizer_has() -> None:
    model = small()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with Doctor(every=1) as doctor:
        for _ in range(4):
            backward(model)
            optimizer.step()
    orphan = {p.name: p for p in doctor.evidence().parameters}["2.weight"]
    assert orphan.optimizer is None
    assert orphan.in_model
    assert orphan.gradient.present > 0
    assert orphan.weight is not None
    assert orphan.weight.moved_share == 0


def test_an_optimizer_that_holds_a_replaced_parameter_holds_a_stale_tensor() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2] = nn.Linear(8, 2)
    with Doctor(every=1) as doctor:
        for _ in range(4):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    evidence = doctor.evidence()
    assert evidence.optimizers[0].stale == ("SGD.group0[2]", "SGD.group0[3]")
    orphans = {p.name for p in evidence.parameters if p.optimizer is None and p.gradient.present}
    assert orphans == {"2.weight", "2.bias"}


def test_tells_modules_that_ran_from_those_that_did_not() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(every=1, probe=True) as doctor:
        for _ in range(6):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    parameters = {p.name: p for p in doctor.evidence().parameters}
    assert parameters["used.weight"].used is True
    assert parameters["idle.weight"].used is False
    assert parameters["idle.weight"].gradient.absent == 6


def test_a_gradient_from_before_the_watch_makes_no_orphan() -> None:
    earlier, model = small(), small()
    backward(earlier)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(every=1) as doctor:
        for _ in range(4):
            backward(model)
            optimizer.step()
    assert not [p for p in doctor.evidence().parameters if p.optimizer is None and p.gradient.present]


def test_methods_that_a_model_overrides_are_not_called() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def parameters(self, kind: str) -> list[nn.Parameter]:  # type: ignore[override]
            raise AssertionError(kind)

        def named_modules(self) -> None:  # type: ignore[override]
            raise AssertionError

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    model = Odd()
    optimizer = torch.optim.SGD(model.layer.parameters(), lr=0.1)
    with Doctor(every=1) as doctor:
        model(torch.randn(2, 6)).sum().backward()
        optimizer.step()
    assert not doctor.evidence().run.limits
    assert any(p.name.endswith("layer.weight") for p in doctor.evidence().parameters)


def test_tells_layers_inside_the_model_from_networks_beside_it() -> None:
    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.hidden = nn.Linear(6, 6), [nn.Linear(6, 2)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.hidden[0](self.first(x))

    model, judge = Hiding(), nn.Sequential(nn.Linear(2, 3, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(every=1, probe=True) as doctor:
        for _ in range(6):
            judge(model(torch.randn(4, 6))).square().mean().backward()
            optimizer.step()
    found = {p.shape: p.used_by_model for p in doctor.evidence().parameters if p.optimizer is None}
    assert found[2, 6] is True
    assert found[3, 2] is False
