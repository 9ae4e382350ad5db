"""How much of the data lies beyond the range of its quantizer, against a count of the values themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from precdoctor.doctor import Doctor
from precdoctor.evidence import DataQuantizer
from precdoctor.rules import diagnose


class Quantize(nn.Module):
    """Passes its input on as a function quantizes it, straight through; keeps what it got."""

    def __init__(self, quantize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.quantize = quantize
        self.got: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.got.append(x.clone())
        return x + (self.quantize(x) - x).detach()


def train(middle: nn.Module, steps: int = 4) -> Doctor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), middle, nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Doctor(model, every=1, probe=True) as doctor:
        for _ in range(steps):
            x = torch.randn(64, 8)
            loss = F.mse_loss(model(x), x[:, :3])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert not [text for text in doctor.evidence().run.limits if "failed" in text]
    return doctor


def seen(middle: nn.Module, steps: int = 4) -> tuple[DataQuantizer, ...]:
    return train(middle, steps).evidence().data_quantizers


def beyond(x: Tensor, limit: float) -> float:
    """Count the values other than 0 beyond a limit, one by one."""
    values = [v for v in x.flatten().tolist() if v != 0]
    return sum(abs(v) > limit for v in values) / len(values)


def quality(x: Tensor, used: Tensor) -> tuple[float, float]:
    """Return the share of the values other than 0 used as zero, and the SQNR in decibels, one by one."""
    pairs = list(zip(x.flatten().tolist(), used.flatten().tolist(), strict=True))
    filled = [u for v, u in pairs if v != 0]
    signal, noise = sum(v * v for v, _ in pairs), sum((u - v) ** 2 for v, u in pairs)
    return sum(u == 0 for u in filled) / len(filled), 10 * math.log10(signal / noise)


LIMIT = 0.3
#: and what may be rounded to the last code, as a share of the limit, where rounding comes first
CLIPPING: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "rounded, then clamped": (lambda x: (x / (LIMIT / 7)).round().clamp(-7, 7) * (LIMIT / 7), 0.5 / 7),
    "clamped, then rounded": (lambda x: (x.clamp(-LIMIT, LIMIT) * (7 / LIMIT)).round() / (7 / LIMIT), 0),
    "clamped by tensors": (
        lambda x: (x.clamp(torch.tensor(-LIMIT), torch.tensor(LIMIT)) * 20).round() / 20,
        0,
    ),
    "hardtanh": (lambda x: (F.hardtanh(x, -LIMIT, LIMIT) * 20).round() / 20, 0),
    "in place": (lambda x: (x * 20).clamp_(-20 * LIMIT, 20 * LIMIT).round_().div_(20), 0),
    "float8": (
        lambda x: (x * (448 / LIMIT)).clamp(-448, 448).to(torch.float8_e4m3fn).float() * (LIMIT / 448),
        0,
    ),
    "cast to float8": (
        lambda x: (x * (448 / LIMIT)).to(torch.float8_e4m3fn).float() * (LIMIT / 448),
        0,
    ),
    "fake quantize": (
        lambda x: torch.fake_quantize_per_tensor_affine(x, LIMIT / 127, 0, -127, 127),
        0.5 / 127,
    ),
    "shifted": (lambda x: ((x.clamp(-LIMIT, LIMIT) / 0.04).add(8).floor() - 8) * 0.04, 0),
}


@pytest.mark.parametrize("name", CLIPPING)
def test_counts_what_lies_beyond_the_range(name: str) -> None:
    quantize, slack = CLIPPING[name]
    module = Quantize(quantize)
    (found,) = seen(module, steps=3)
    assert found.module == "2"
    assert (found.seen, found.first_step, found.last_step) == (3, 0, 2)
    limit = LIMIT * (1 + slack)
    assert found.clipped_share_first == pytest.approx(beyond(module.got[0], limit), abs=0.002)
    assert found.clipped_share == pytest.approx(beyond(module.got[2], limit), abs=0.002)
    assert found.place is not None
    assert found.place.file.endswith("test_clipping.py")


@pytest.mark.parametrize(
    "quantize",
    [
        lambda x: (x / 4).clamp(-127, 127).round() * 4,
        lambda x: torch.clamp(torch.round(x / 4), -127, 127) * 4,
        lambda x: (x.clamp(-508, 508) / 4).round() * 4,
    ],
    ids=["clamped, then rounded", "rounded, then clamped", "scaled in between"],
)
def test_counts_what_is_used_as_zero(quantize: Callable[[Tensor], Tensor]) -> None:
    module = Quantize(quantize)
    (found,) = seen(module, steps=3)
    values = module.got[2]
    assert found.flushed_share == pytest.approx(float((values.abs() <= 2).float().mean()), abs=0.01)
    largest = float((values / 4).abs().max())
    assert found.reach == pytest.approx(max(round(largest), largest) / 127, abs=1 / 127)
    assert found.clipped_share == 0


#: what rounds, with no value beyond the range, and what it uses
ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded, then clamped": lambda x: (x / 0.7).round().clamp(-7, 7) * 0.7,
    "clamped, then rounded": lambda x: (x / 0.7).clamp(-7, 7).round() * 0.7,
    "rounded in place": lambda x: (x / 0.7).round_().clamp_(-7, 7).mul_(0.7),
    "clamped and rounded in place": lambda x: x.div(0.7).clamp_(-7, 7).round_().mul_(0.7),
    "float8_e4m3fn": lambda x: (x * 2e-3).to(torch.float8_e4m3fn).float() * 500,
    "copied into float8": lambda x: (
        torch.empty_like(x, dtype=torch.float8_e4m3fn).copy_(x * 2e-3).float() * 500
    ),
    "fake quantize": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.7, 0, -7, 7),
    "fake quantize of channels": lambda x: torch.fake_quantize_per_channel_affine(
        x, torch.full((x.shape[1],), 0.7), torch.zeros(x.shape[1], dtype=torch.int32), 1, -7, 7
    ),
}


@pytest.mark.parametrize("name", ROUNDING)
def test_measures_what_rounding_leaves(name: str) -> None:
    module = Quantize(ROUNDING[name])
    (found,) = seen(module, steps=3)
    flushed, sqnr_db = quality(module.got[2], ROUNDING[name](module.got[2]))
    assert 0.2 < flushed < 0.9
    assert found.flushed_share == pytest.approx(flushed, abs=1e-3)
    assert found.sqnr_db == pytest.approx(sqnr_db, abs=0.02)
    assert found.reach < 1 / 4


def test_large_data_is_measured_on_a_sample() -> None:
    module = Quantize(lambda x: (x.repeat(40, 1) / 0.7).round().clamp(-7, 7)[: len(x)] * 0.7)
    (found,) = seen(module, steps=3)
    flushed, sqnr_db = quality(module.got[2], (module.got[2] / 0.7).round() * 0.7)
    assert found.flushed_share == pytest.approx(flushed, abs=0.02)
    assert found.sqnr_db == pytest.approx(sqnr_db, abs=0.3)


def test_what_rounds_without_an_error_has_no_sqnr() -> None:
    (found,) = seen(Quantize(lambda x: x.sign().clamp(-1, 1).round()))
    assert found.sqnr_db is None


def test_beyond_float8_e5m2_lies_infinity() -> None:
    module = Quantize(lambda x: (x * (57344 / LIMIT)).to(torch.float8_e5m2).float() * (LIMIT / 57344))
    (found,) = seen(module, steps=1)
    assert found.clipped_share == pytest.approx(beyond(module.got[0], LIMIT), abs=0.002)
    assert found.non_finite_share == pytest.approx(beyond(module.got[0], LIMIT * 61440 / 57344), abs=0.002)


def test_gradients_are_not_data() -> None:
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return (gradient * 1e9).to(torch.float8_e4m3fn).float() / 1e9

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Rounded.apply(x)  # type: ignore[no-any-return,no-untyped-call]

    assert seen(Layer()) == ()


def test_a_cast_to_float8_without_a_scale_loses_what_is_small() -> None:
    (found,) = seen(Quantize(lambda x: (x * 1e-4).to(torch.float8_e4m3fn).float() * 1e4))
    assert found.flushed_share == 1
    assert found.reach == 0


def test_a_range_that_follows_the_data_clips_nothing() -> None:
    def follow(x: Tensor) -> Tensor:
        scale = x.abs().max() / 127
        return (x / scale).round().clamp(-127, 127) * scale

    (found,) = seen(Quantize(follow))
    assert found.clipped_share == 0


def test_a_rectifier_is_no_range() -> None:
    (found,) = seen(Quantize(lambda x: (x.clamp(0, 2) * 8).round() / 8))
    assert found.clipped_share == 0


@pytest.mark.parametrize(
    "harmless",
    [
        lambda x: x.clamp(-LIMIT, LIMIT),  # no rounding
        lambda x: (x * 8).round() / 8,  # no clamp
        lambda x: x.clamp(-LIMIT, LIMIT).exp().round(),  # something in between
        lambda x: x.sign(),  # a sign has no range
        lambda x: F.relu6(x * 6),
    ],
)
def test_a_clamp_and_a_rounding_that_do_not_belong_together_are_none(
    harmless: Callable[[Tensor], Tensor],
) -> None:
    assert seen(Quantize(harmless)) == ()


def test_preprocessing_outside_of_modules_is_not_looked_at() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Doctor(model, every=1, probe=True) as doctor:
        for _ in range(3):
            x = (torch.randn(64, 8).clamp(-0.1, 0.1) * 127).round() / 127
            F.mse_loss(model(x), x[:, :3]).backward()
            optimizer.step()
    assert doctor.evidence().data_quantizers == ()


def test_a_module_that_is_evaluated_is_not_judged() -> None:
    assert seen(Quantize(CLIPPING["in place"][0]).eval()) == ()


def test_weights_are_not_data() -> None:
    class Layer(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            used = (self.weight / 0.01).round().clamp(-7, 7) * 0.01
            return F.linear(x, self.weight + (used - self.weight).detach())

    assert seen(Layer(32, 32)) == ()


def test_only_more_than_half_is_an_illness() -> None:
    def report(limit: float) -> list[str]:
        doctor = train(Quantize(lambda x: (x / (limit / 7)).round().clamp(-7, 7) * (limit / 7)))
        return [f.rule for f in diagnose(doctor.evidence()).findings if f.severity != "note"]

    assert report(0.1) == ["PD604"]
    assert report(0.6) == []


HEALTHY: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": lambda x: (x / (x.abs().max() / 127)).round().clamp(-127, 127) * (x.abs().max() / 127),
    "int8, rarely reached": lambda x: (x / 0.02).round().clamp(-127, 127) * 0.02,
    "int4": lambda x: (x / (x.abs().max() / 7)).round().clamp(-7, 7) * (x.abs().max() / 7),
    "int4 of what is sparse": lambda x: (x.relu() ** 4 / (x.max() ** 4 / 7)).round().clamp(0, 7),
    "ternary": lambda x: (x / x.abs().mean()).round().clamp(-1, 1) * x.abs().mean(),
    "ternary, mostly signs": lambda x: (x / 0.05).round().clamp(-1, 1) * 0.05,
    "clamped to signs": lambda x: (x / 0.05).clamp(-1, 1).round() * 0.05,
    "binary spikes": lambda x: (x / 0.05).clamp(0, 1).round(),
    "ternary fake quantize": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -1, 1),
    "binary": lambda x: x.sign().clamp(-1, 1).round() * x.abs().mean(),
    "float8": lambda x: (x * 100).to(torch.float8_e4m3fn).float() / 100,
    "float8 unscaled": lambda x: x.to(torch.float8_e5m2).float(),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_grid_that_is_coarse_by_choice_is_no_illness(name: str) -> None:
    assert "PD604" not in [f.rule for f in diagnose(train(Quantize(HEALTHY[name])).evidence()).findings]


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_a_scale_from_outliers_is_an_illness(name: str) -> None:
    scale, top = {"int4": (1.0, 7), "int8": (100 / 127, 127)}[name]
    doctor = train(Quantize(lambda x: (x / 2 / scale).round().clamp(-top, top) * 2 * scale))
    assert [f.rule for f in diagnose(doctor.evidence()).findings if f.severity == "error"] == ["PD604"]
