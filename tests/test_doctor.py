"""The Doctor on the small RMSNorm net of docs/how-it-works.md: what each way of storing weights does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from precdoctor.doctor import Doctor
from precdoctor.evidence import Evidence, Parameter, State, Updates, from_json, to_json
from tests.reference import optimizers as reference


class RMSNorm(nn.Module):
    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.weight


class Net(nn.Module):
    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.inp, self.norm, self.out = nn.Linear(32, 64, bias=False), RMSNorm(64, value), nn.Linear(64, 8)
        nn.init.normal_(self.inp.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.norm(self.inp(x))))


def observed(
    make: Callable[[Any], torch.optim.Optimizer],
    *,
    dtype: torch.dtype = torch.bfloat16,
    autocast: bool = False,
    value: float = 1.0,
    steps: int = 200,
) -> Evidence:
    torch.manual_seed(0)
    model = Net(value).to(dtype)
    optimizer = make(model.parameters())
    target = torch.randn(32, 8)
    with Doctor(model, optimizer, every=1, watch=0) as doctor:
        for _ in range(steps):
            x = torch.randn(64, 32)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                prediction = model(x if autocast else x.to(dtype))
            loss = nn.functional.cross_entropy(prediction.float(), (x @ target).argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return doctor.evidence()


def parameter(evidence: Evidence, name: str) -> Parameter:
    return next(p for p in evidence.parameters if p.name == name)


def updates(evidence: Evidence, name: str = "norm.weight") -> Updates:
    found = parameter(evidence, name).updates
    assert found is not None
    return found


def adamw(lr: float, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.0, **options)


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("lr", [3e-4, 1e-3])
def test_norms_at_one_are_frozen(lr: float, options: dict[str, bool]) -> None:
    evidence = observed(adamw(lr, **options), steps=60)
    found = updates(evidence)
    assert found.lost_share == 1.0
    assert found.never_moved_share == 1.0
    assert found.edq[0].edq == 0.0
    assert (found.ups_applied, found.downs_applied) == (0, 0)
    assert found.ups_intended > 300
    assert found.downs_intended > 300
    weight = parameter(evidence, "norm.weight").weight
    assert weight is not None
    assert (weight.abs_min, weight.abs_max, weight.power_of_two_share, weight.moved_share) == (1, 1, 1, 0)
    assert not evidence.optimizers[0].benches[0].preserves


@pytest.mark.parametrize(("stop", "rules"), [(1000, {"PD101"}), (15, set())])
def test_a_scalar_is_followed_to_the_end(stop: int, rules: set[str]) -> None:
    scale = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([scale], lr=3e-4, weight_decay=0)
    with Doctor(None, optimizer, budget=1e-9) as doctor:  # the first ten steps, and no more
        for step in range(100):
            if step == stop:
                optimizer.param_groups[0]["lr"] = 0.1
            scale.grad = torch.ones_like(scale)
            optimizer.step()
    (seen,) = doctor.evidence().parameters
    assert seen.updates is not None
    assert 8 <= seen.updates.intended < 20
    assert {f.rule for f in doctor.report().findings if f.severity == "error"} == rules


def test_a_larger_learning_rate_drifts_one_sidedly() -> None:
    found = updates(observed(adamw(3e-3)))
    assert 0.95 < found.lost_share < 1.0
    meant, stored = (
        found.ups_intended / found.intended,
        found.ups_applied / (found.ups_applied + found.downs_applied),
    )
    assert stored < meant - 0.2  # below 1.0 the next value is half as far away as above it
    assert found.edq[0].edq < 0.5
    assert found.drift_applied < found.drift_intended / 2


def test_a_smaller_initialisation_still_loses_most() -> None:
    assert updates(observed(adamw(3e-4), value=0.1)).lost_share > 0.5
    assert updates(observed(adamw(1e-4), value=0.1, steps=60)).lost_share > 0.99


def test_float32_weights_lose_nothing() -> None:
    for evidence in (
        observed(adamw(3e-4), dtype=torch.float32),
        observed(adamw(3e-4), dtype=torch.float32, autocast=True),
    ):
        found = updates(evidence)
        assert found.lost_share < 0.01
        assert found.edq[0].edq == pytest.approx(1, abs=1e-3)


def test_matrices_mostly_learn_at_3e_4_and_mostly_do_not_at_3e_5() -> None:
    learns, loses = updates(observed(adamw(3e-4)), "inp.weight"), updates(observed(adamw(3e-5)), "inp.weight")
    assert 0.2 < learns.lost_share < 0.6
    assert learns.edq[0].edq > 0.9
    assert loses.lost_share > 0.8
    assert loses.edq[0].edq < 0.5


@pytest.mark.parametrize("kind", [reference.Kahan, reference.OwnMaster, reference.StochasticRounding])
def test_what_carries_the_remainder_learns_though_most_updates_are_lost(
    kind: type[torch.optim.Optimizer],
) -> None:
    evidence = observed(lambda p: kind(p, lr=3e-3, momentum=0.0), steps=100)  # type: ignore[call-arg]
    found = updates(evidence)
    assert found.lost_share > 0.8
    assert evidence.optimizers[0].benches[0].preserves
    if kind is not reference.StochasticRounding:  # one rounding is noise; only its mean is right
        assert found.net_edq is None or found.net_edq == pytest.approx(1, abs=0.3)


def test_weight_decay_is_a_no_op_in_bfloat16_and_told_apart_from_the_gradient() -> None:
    def decay(options: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> Any:
        return updates(
            observed(lambda p: torch.optim.AdamW(p, lr=1e-2, **options), dtype=dtype, steps=40), "inp.weight"
        ).decay

    lost = decay({"weight_decay": 0.1})
    assert lost.per_step == pytest.approx(1e-3)
    assert (lost.arrived, lost.high) == (0, 0)
    assert decay({"weight_decay": 1.0}).arrived == pytest.approx(1, abs=0.5)  # 1e-2 > 2**-8: it passes
    # one rounding of the sum dithers the decay through
    assert decay({"weight_decay": 0.1, "fused": True}).high > 0.5
    assert decay({"weight_decay": 0.1}, torch.float32) is None


def test_a_second_moment_in_bfloat16_cannot_fall() -> None:
    def states(beta2: float) -> list[State]:
        evidence = observed(adamw(1e-3, betas=(0.9, beta2)), steps=60)
        return [s for s in evidence.states if s.parameter == "inp.weight"]

    first, second = states(0.999)
    assert (first.key, first.role, first.beta) == ("exp_avg", "first moment", pytest.approx(0.9, abs=1e-3))
    assert (second.key, second.role, second.beta) == (
        "exp_avg_sq",
        "second moment",
        pytest.approx(0.999, abs=1e-4),
    )
    assert second.edq_down == 0.0
    assert first.edq_down == pytest.approx(1, abs=0.1)
    assert states(0.9)[1].edq_down == pytest.approx(1, abs=0.1)


def test_a_burst_leaves_a_stuck_second_moment_many_times_too_large() -> None:
    p = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([p], lr=1e-3)
    torch.manual_seed(0)
    with Doctor(every=1) as doctor:
        for step in range(1200):
            p.grad = (torch.randn(64) * (100.0 if step < 10 else 1.0)).bfloat16()
            optimizer.step()
    second = doctor.evidence().states[1]
    assert second.over_exact is not None
    assert second.over_exact > 2
    # it stands at what the burst left, (1 - 0.999^10) * 100^2 or more, over squares of 1
    assert second.over_gradient == pytest.approx(100, rel=0.5)


def test_sees_an_optimizer_that_does_not_write_its_result() -> None:
    """torch 2.13 on a CPU: fused SGD skips full SIMD blocks of bfloat16."""
    p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = reference.WritesNothing([p], lr=0.1)
    with Doctor(every=1) as doctor:
        for _ in range(5):
            p.grad = torch.ones_like(p)
            optimizer.step()
    seen = doctor.evidence().parameters[0]
    assert seen.weight is not None
    assert seen.weight.moved_share == 0
    assert seen.gradient.all_zero == 0


def test_evidence_of_a_run_survives_a_file() -> None:
    evidence = observed(adamw(3e-4), steps=3)
    assert from_json(to_json(evidence)) == evidence


def test_float64_and_float16_models_are_observed_in_their_own_format() -> None:
    double = updates(observed(adamw(1e-3), dtype=torch.float64, steps=3))
    assert double.lost_share == 0
    half = parameter(
        observed(lambda p: torch.optim.SGD(p, lr=1e-4), dtype=torch.float16, steps=3), "norm.weight"
    )
    assert half.format == "float16"
    assert half.updates is not None
    assert half.updates.lost_share > 0.5


def test_names_the_likely_cast_when_it_came_too_late_to_see_it() -> None:
    model = nn.Linear(4, 4).to(torch.bfloat16)
    nn.init.ones_(model.weight)  # small random weights would move
    nn.init.ones_(model.bias)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    with Doctor(model, optimizer) as doctor:
        for _ in range(3):
            model(torch.randn(2, 4, dtype=torch.bfloat16)).sum().backward()
            optimizer.step()
    evidence = doctor.evidence()
    cast = evidence.parameters[0].cast
    assert cast is not None
    assert cast.place is not None
    assert cast.place.code.endswith(".to(torch.bfloat16)")
    assert not cast.place.certain
    assert evidence.excerpts
    assert "PD101" in {f.rule for f in doctor.report().findings}
