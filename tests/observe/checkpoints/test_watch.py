"""What is saved and loaded is compared with what is trained; files stay as they are."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from precdoctor.doctor import Doctor
from precdoctor.evidence import Evidence, Snapshot
from precdoctor.rules.non_finite_origin import NonFiniteOrigin
from precdoctor.rules.truncated_checkpoint import TruncatedCheckpoint

Save = Callable[[nn.Module, torch.optim.Optimizer], None]


def through(saved: Any) -> Any:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file)


def train(act: Save, *, steps: int = 4) -> Evidence:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with Doctor(every=1, probe=True) as doctor:
        for step in range(steps):
            loss = model(torch.randn(4, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 1:
                act(model, optimizer)
    return doctor.evidence()


def found(act: Save) -> tuple[tuple[Snapshot, ...], list[str]]:
    evidence = train(act)
    return evidence.snapshots, [f.severity for f in TruncatedCheckpoint.criterion(evidence)]


def low(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.bfloat16() for name, weight in model.state_dict().items()}


def test_rounded_weights_beside_the_state_are_measured() -> None:
    kept: list[Tensor] = []

    def act(model: nn.Module, optimizer: Any) -> None:
        kept.extend(p.detach().double().reshape(-1) for p in model.parameters())
        through({"model": low(model), "nested": [{"opt": optimizer.state_dict()}]})

    (snapshot,), severities = found(act)
    weights = torch.cat(kept)
    error = weights - weights.bfloat16().double()
    assert severities == ["warning"]
    assert (snapshot.trained, snapshot.format, snapshot.numel) == ("float32", "bfloat16", 58)
    assert snapshot.parameters == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert snapshot.changed_share == float((error != 0).double().mean())
    assert snapshot.relative_error == pytest.approx(float(error.norm() / weights.norm()))
    assert snapshot.cast is not None
    assert "weight.bfloat16()" in snapshot.cast.code


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda m, o: through(low(m)), []),
        (lambda m, o: through({"model": low(m), "epoch": 3}), []),
        (lambda m, o: through({"model": m.state_dict(), "deploy": low(m), "opt": o.state_dict()}), []),
        (lambda m, o: (through(m.state_dict()), through(low(m)), through(o.state_dict())), []),
        (lambda m, o: (through(low(m)), through(o.state_dict())), ["warning"]),
        (lambda m, o: (through(o.state_dict()), through(low(m))), ["warning"]),
        (lambda m, o: through({"model": list(low(m).values()), "opt": o.state_dict()}), ["warning"]),
        (lambda m, o: m.load_state_dict(low(m)), []),
        (lambda m, o: (m.load_state_dict(low(m)), o.load_state_dict(o.state_dict())), ["warning"]),
        (lambda m, o: (o.load_state_dict(o.state_dict()), m.load_state_dict(low(m))), ["warning"]),
        (lambda m, o: m.load_state_dict(through(low(m))), ["error"]),
        (lambda m, o: copy.deepcopy(m).load_state_dict(through(low(m))), []),
    ],
)
def test_what_training_goes_on_from_is_told_from_what_is_used(act: Save, expected: list[str]) -> None:
    assert found(act)[1] == expected


def test_an_export_at_another_time_is_not_beside_the_state() -> None:
    def epoch() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(4, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(4):
            model(torch.randn(4, 4)).square().mean().backward()
            optimizer.step()
        return model, optimizer

    with Doctor(every=1, probe=True) as doctor:
        model, optimizer = epoch()
        through({"model": model.state_dict(), "opt": optimizer.state_dict()})
        resumed, _ = epoch()  # a new optimizer, that has made as many steps
        through(low(resumed))
    assert not TruncatedCheckpoint.criterion(doctor.evidence())


def test_a_model_that_is_saved_whole_is_looked_into() -> None:
    class Store:
        def write(self, saved: Any) -> None:
            torch.save(saved, io.BytesIO())

    def act(model: nn.Module, optimizer: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.serialization, "_save", lambda *_, **__: None)  # modules are pickled
            Store().write({"model": copy.deepcopy(model).half(), "opt": optimizer.state_dict()})

    assert found(act)[1] == ["warning"]


def test_weights_that_are_rounded_in_place_to_be_saved_are_an_error() -> None:
    def act(model: nn.Module, _: Any) -> None:
        through(model.half().state_dict())
        model.float()

    (snapshot,), severities = found(act)
    assert severities == ["error"]
    assert (snapshot.trained, snapshot.format) == ("float32", "float16")


def test_a_model_trained_in_a_low_format_is_saved_as_it_is() -> None:
    model = nn.Linear(4, 2).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(every=1) as doctor:
        for _ in range(2):
            model(torch.randn(4, 4).bfloat16()).float().square().mean().backward()
            optimizer.step()
        through({"model": model.state_dict(), "opt": optimizer.state_dict()})
    assert doctor.evidence().snapshots == ()


def test_the_file_is_the_same() -> None:
    model = nn.Linear(4, 2)
    files = [io.BytesIO(), io.BytesIO()]
    torch.save(low(model), files[0])
    with Doctor(every=1):
        torch.save(low(model), files[1])
    assert files[0].getvalue() == files[1].getvalue()


def of_running_variance(act: Callable[[nn.Module], Any], variance: Tensor) -> list[str]:
    """Return the severities of what PD501 says of a model whose statistics are saved or loaded."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].running_var = variance.clone()
    with Doctor(every=1, probe=True) as doctor:
        act(model)
    return [f.severity for f in NonFiniteOrigin.criterion(doctor.evidence())]


def half(model: nn.Module) -> dict[str, Tensor]:
    return {n: v.half() if v.is_floating_point() else v for n, v in model.state_dict().items()}


BEYOND = torch.tensor([1.0, 9e4, 6e6, 0.01])


@pytest.mark.parametrize(
    ("act", "variance", "expected"),
    [
        (lambda m: through(half(m)), BEYOND, ["warning"]),
        (lambda m: copy.deepcopy(m).load_state_dict(through(half(m))), BEYOND, ["error"]),
        (lambda m: m.load_state_dict(half(m)), BEYOND, ["error"]),
        (lambda m: through({"ema": [m.half().state_dict()]}), BEYOND, ["warning"]),
        (lambda m: half(m), BEYOND, ["note"]),
        (lambda m: m.load_state_dict(through(half(m))), BEYOND / 100, []),
        (lambda m: m.load_state_dict(through(low(m))), BEYOND, []),
        (lambda m: m.load_state_dict(through(half(m))), torch.tensor([1.0, torch.inf, 2.0, 3.0]), []),
        (lambda m: m.load_state_dict(through(half(m))), torch.tensor([0.0, -1e9, -1e9, 0.0]), []),  # a mask
    ],
)
def test_finite_values_that_are_infinite_in_a_checkpoint(
    act: Callable[[nn.Module], Any], variance: Tensor, expected: list[str]
) -> None:
    assert of_running_variance(act, variance) == expected


def slim(optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> dict[str, Any]:
    """Return the state of an optimizer with its moments in a low format."""
    state = copy.deepcopy(optimizer.state_dict())
    for values in state["state"].values():
        for key, value in values.items():
            values[key] = value.to(dtype) if value.ndim else value
    return state


@pytest.mark.parametrize(
    ("dtype", "scale", "resume", "expected"),
    [
        (torch.float16, 1e-3, False, ["warning"]),
        (torch.float16, 5e-4, True, ["error"]),
        (torch.float16, 1.0, True, []),
        (torch.bfloat16, 1e-3, True, []),
        (torch.float32, 1e-3, True, []),
    ],
)
def test_state_that_becomes_zero_on_its_way_is_counted(
    dtype: torch.dtype, scale: float, resume: bool, expected: list[str]
) -> None:
    true: list[float] = []

    def act(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for values in optimizer.state.values():
            values["exp_avg_sq"].copy_(1e-4 * scale * torch.rand_like(values["exp_avg_sq"]))
        squares = torch.cat([v["exp_avg_sq"].reshape(-1) for v in optimizer.state.values()])
        true.append(float((squares.to(dtype) == 0).double().mean()))
        state = slim(optimizer, dtype)
        torch.save({"optimizer": state}, io.BytesIO())
        if resume:
            optimizer.load_state_dict(state)

    seen, severities = found(act)
    lost = [s for s in seen if s.parameters == ("exp_avg_sq",)]
    if scale < 1 and dtype == torch.float16:
        assert [s.changed_share for s in lost] == [pytest.approx(true[0])]
    assert severities == expected


def test_state_that_is_only_loaded_shows_what_it_has_lost() -> None:
    def act(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        state = slim(optimizer, torch.float16)
        for values in state["state"].values():
            values["exp_avg"], values["exp_avg_sq"] = values["exp_avg"] + 0.1, 0 * values["exp_avg_sq"]
        optimizer.load_state_dict(state)

    (snapshot,), severities = found(act)
    assert (snapshot.kind, snapshot.parameters) == ("loaded state", ("exp_avg_sq",))
    assert snapshot.changed_share == 1.0
    assert severities == ["error"]
