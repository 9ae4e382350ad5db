"""The replayed update is the one that torch's own optimizer makes, loaded with the state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from precdoctor import diff
from precdoctor.checkpoints.optimizers import Owned
from precdoctor.checkpoints.replay import kind_of, name_of, next_update
from precdoctor.evidence import Prognosis
from precdoctor.formats import BFLOAT16, FLOAT16
from tests.checkpoints.build import entry, saved, state, step, trained
from tests.reference import checkpoints as twin

OPTIMIZERS: dict[str, Any] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "maximize": lambda p: torch.optim.Adam(p, lr=1e-2, maximize=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "AdamW, tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2)),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "SGD, dampening": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, dampening=0.5),
    "SGD, nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
}
#: what stays as it is under the gradient that is assumed
KEPT = {
    "Adam": "exp_avg",
    "NAdam": "exp_avg",
    "RAdam": "exp_avg",
    "Adamax": "exp_avg",
    "SGD": "momentum_buffer",
}


def after_steps(make: Any) -> tuple[nn.Parameter, Any]:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(50, dtype=torch.float64))
    optimizer = make([weight])
    for _ in range(7):
        weight.grad = torch.randn(50, dtype=torch.float64) + 0.5
        optimizer.step()
    return weight, optimizer


def owned_by(optimizer: Any, weight: nn.Parameter) -> Owned:
    kept = optimizer.state[weight]
    group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    return Owned(
        tensors={k: entry(v) for k, v in kept.items() if isinstance(v, torch.Tensor)},
        numbers={k: v for k, v in kept.items() if not isinstance(v, torch.Tensor)},
        group=group,
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_is_the_step_that_the_optimizer_makes(name: str) -> None:
    weight, optimizer = after_steps(OPTIMIZERS[name])
    owned = owned_by(optimizer, weight)
    kind = kind_of(owned)
    assert kind is not None
    assert getattr(torch.optim, kind.name) in type(optimizer).__mro__
    before = copy.deepcopy(optimizer.state[weight])
    flat = {k: v.double().clone() for k, v in before.items() if isinstance(v, torch.Tensor)}
    found = next_update(weight.detach().clone(), owned, flat)
    start = weight.detach().clone()
    sign = -1.0 if owned.group.get("maximize") else 1.0
    weight.grad = sign * kind.gradient(start, flat, owned.group)
    optimizer.step()
    # a learning rate that is a float32 tensor is multiplied in float32
    assert torch.allclose(found, weight.detach() - start, rtol=1e-3 if "tensor" in name else 1e-9, atol=1e-14)
    assert found.any()
    key = KEPT.get(kind.name)
    if key is not None:
        assert torch.allclose(optimizer.state[weight][key], before[key], rtol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_leaves_the_state_that_it_was_given_alone(name: str) -> None:
    weight, optimizer = after_steps(OPTIMIZERS[name])
    given = {k: v.double() for k, v in optimizer.state[weight].items() if isinstance(v, torch.Tensor)}
    before, values = copy.deepcopy(given), weight.detach().clone()
    next_update(values, owned_by(optimizer, weight), given)
    assert all(torch.equal(given[k], before[k]) for k in before)
    assert torch.equal(values, weight.detach())


def test_names_an_optimizer_that_it_does_not_know_by_its_state() -> None:
    owned = Owned(
        tensors={"row_var": entry(torch.ones(3)), "col_var": entry(torch.ones(3))}, group={"lr": 1.0}
    )
    assert kind_of(owned) is None
    assert name_of(owned) == "an optimizer with col_var and row_var"


def test_adamw_is_told_from_adam() -> None:
    for name in ("Adam", "AdamW"):
        weight, optimizer = after_steps(OPTIMIZERS[name])
        assert name_of(owned_by(optimizer, weight)) == name


def prognoses(path: Path, *formats: str) -> dict[str, dict[str, Prognosis]]:
    contents = diff(path, formats=formats).evidence.contents
    assert contents is not None
    return {t.name: {p.format: p for p in t.prognoses} for t in contents.tensors if t.prognoses}


def test_shares_and_headroom_agree_with_single_numbers(tmp_path: Path) -> None:
    model, optimizer = trained(lr=3e-4, weight_decay=0.0)
    found = prognoses(saved(state(model, optimizer), tmp_path / "a.pt"), "bfloat16", "float16")
    assert set(found) == {f"model.{name}" for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        kept = optimizer.state[parameter]
        count = int(kept["step"]) + 1
        second = 0.999 * kept["exp_avg_sq"].double() + 0.001 * kept["exp_avg"].double() ** 2
        root = (second / (1 - 0.999**count)).sqrt() + 1e-8
        update = (-3e-4 / (1 - 0.9**count) * kept["exp_avg"].double() / root).flatten()
        there = update != 0
        weights, updates = parameter.detach().double().flatten()[there].tolist(), update[there].tolist()
        for fmt in (BFLOAT16, FLOAT16):
            lost, bits = twin.lost_share(weights, updates, fmt)
            prognosis = found[f"model.{name}"][fmt.name]
            assert prognosis.lost_share == pytest.approx(lost, abs=2 / len(weights))
            median = prognosis.headroom_bits.quantile(0.5)
            assert median == pytest.approx(bits, abs=0.5)
            assert (prognosis.intended, prognosis.stored) == (len(weights), False)
        assert found[f"model.{name}"]["float32"].stored
        assert found[f"model.{name}"]["float32"].lost_share < 0.01


def test_a_large_parameter_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from precdoctor.checkpoints import contents

    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(400, 400))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    weight.grad = torch.randn(400, 400)
    optimizer.step()
    path = saved({"model": {"w": weight}, "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    whole = prognoses(path, "bfloat16")["model.w"]["bfloat16"]
    monkeypatch.setattr(contents, "MOST", 1 << 14)
    part = prognoses(path, "bfloat16")["model.w"]["bfloat16"]
    assert (whole.watched, part.watched) == (160_000, 1 << 14)
    assert part.lost_share == pytest.approx(whole.lost_share, abs=0.02)


def test_a_float32_copy_in_the_state_is_the_weight_that_counts(tmp_path: Path) -> None:
    model, optimizer = trained(torch.bfloat16)
    value = state(model, optimizer)
    for index, parameter in enumerate(model.parameters()):
        kept = value["optimizer"]["state"][index]
        kept["master"] = parameter.detach().float() * (1 + 2.0**-11)
        kept["exp_avg"], kept["exp_avg_sq"] = kept["exp_avg"].float(), kept["exp_avg_sq"].float()
    report = diff(saved(value, tmp_path / "a.pt"))
    contents = report.evidence.contents
    assert contents is not None
    masters = {t.name: t.has_master for t in contents.tensors if t.kind == "parameter"}
    assert masters["model.0.weight"]
    stored = next(p for t in contents.tensors if t.name == "model.0.weight" for p in t.prognoses if p.stored)
    assert stored.format == "float32"


def test_a_buffer_for_what_rounding_lost_is_said_and_makes_it_a_note(tmp_path: Path) -> None:
    model, optimizer = trained(torch.bfloat16, lr=1e-5)
    value = state(model, optimizer)
    ill = diff(saved(value, tmp_path / "a.pt"), select=["PD703"])
    assert [f.severity for f in ill.findings] == ["warning"]
    for kept in value["optimizer"]["state"].values():
        kept["kahan_comp"] = torch.zeros_like(kept["exp_avg"])
    carrying = diff(saved(value, tmp_path / "b.pt"), select=["PD703"])
    assert [f.severity for f in carrying.findings] == ["note"]
    assert "kahan_comp" in carrying.findings[0].message


def test_a_learning_rate_that_is_a_tensor_is_read_from_the_file(tmp_path: Path) -> None:
    weight, optimizer = after_steps(OPTIMIZERS["AdamW, tensor lr"])
    value = {"model": {"w": weight}, "optimizer": optimizer.state_dict()}
    found = prognoses(saved(value, tmp_path / "a.pt"), "float64")["model.w"]["float64"]
    assert 0.003 < found.update < 0.03


def test_an_optimizer_without_memory_gives_no_prognosis_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    report = diff(saved(state(model, optimizer), tmp_path / "a.pt"))
    assert any("keeps no state" in limit for limit in report.evidence.run.limits)
    assert next(s for s in report.diagnosis.vital_signs if "next update" in s.name).status == "unknown"


def test_the_checkpoint_of_a_speaker_encoder(tmp_path: Path) -> None:
    """Its next update would leave 97.2 % of the elements as they are in bfloat16, 79.6 % in float16."""
    import importlib.util

    spec = importlib.util.find_spec("resemblyzer")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("Resemblyzer, whose package ships weights with Adam's state, is not installed")
    from precdoctor.report.checkpoint_rows import outlooks

    contents = diff(Path(spec.submodule_search_locations[0]) / "pretrained.pt").evidence.contents
    assert contents is not None
    unchanged = {outlook.format: outlook.unchanged_share for outlook in outlooks(contents)}
    assert unchanged["bfloat16"] == pytest.approx(0.972, abs=5e-4)
    assert unchanged["float16"] == pytest.approx(0.796, abs=5e-4)
    assert unchanged["float32"] == pytest.approx(0.003, abs=5e-4)
    assert len(contents.tensors) == 48


def test_training_on_from_a_late_bfloat16_state_moves_what_the_prognosis_says(tmp_path: Path) -> None:
    """The real next step, with a real gradient, moves about as few elements."""
    model, optimizer = trained(torch.bfloat16, steps=60, lr=1e-4, betas=(0.9, 0.99))
    found = prognoses(saved(state(model, optimizer), tmp_path / "a.pt"))["model.0.weight"]["bfloat16"]
    before = model[0].weight.detach().clone()  # type: ignore[index]
    step(model, optimizer, 1)
    lost = float((model[0].weight == before).double().mean())  # type: ignore[index]
    assert found.lost_share == pytest.approx(lost, abs=0.15)
    assert found.lost_share > 0.5
