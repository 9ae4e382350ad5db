"""Bfloat16 training in each wrapper against float32 training, and what a Doctor says of it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from precdoctor import Doctor, Report
from precdoctor.evidence import Evidence
from precdoctor.remedies import Float32State, KahanSummation, MasterWeights, StochasticRounding
from tests.test_doctor import Net

CURES = (StochasticRounding, KahanSummation, MasterWeights)


@functools.cache
def trained(wrap: Any, dtype: torch.dtype, weight_decay: float = 0.0) -> tuple[torch.Tensor, Evidence]:
    """Return the travel of the norm in 200 steps, and what a Doctor saw."""
    torch.manual_seed(0)
    model, target = Net().to(dtype), torch.randn(32, 8)
    inner = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=weight_decay)
    optimizer = inner if wrap is None else wrap(inner)
    with Doctor(model, optimizer, every=1) as doctor:
        for _ in range(200):
            x = torch.randn(64, 32)
            loss = nn.functional.cross_entropy(model(x.to(dtype)).float(), (x @ target).argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.norm.weight.detach().float() - 1, doctor.evidence()


def share(travel: torch.Tensor) -> float:
    """Return the share of float32's travel, as the projection on it."""
    exact, _ = trained(None, torch.float32)
    return float((travel * exact).sum() / exact.square().sum())


@pytest.mark.parametrize(
    ("wrap", "band"), [(MasterWeights, 0.05), (KahanSummation, 0.05), (StochasticRounding, 0.2)]
)
def test_the_norm_travels_as_in_float32(wrap: Any, band: float) -> None:
    travel, _ = trained(wrap, torch.bfloat16)
    assert share(travel) == pytest.approx(1, abs=band)


@pytest.mark.parametrize("wrap", [None, Float32State])
def test_without_them_it_does_not_travel(wrap: Any) -> None:
    assert trained(wrap, torch.bfloat16)[0].eq(0).all()


@pytest.mark.parametrize("wrap", CURES)
def test_a_doctor_finds_the_wrapped_run_healthy(wrap: Any) -> None:
    _, evidence = trained(wrap, torch.bfloat16, 0.01)
    assert [f.rule for f in Report.of(evidence).findings if f.severity != "note"] == []
    assert all(b.preserves for b in evidence.optimizers[0].benches)
    assert evidence.run.limits == ()  # it could be replayed
    assert evidence.optimizers[0].steps == 200
    norm = next(p for p in evidence.parameters if p.name == "norm.weight")
    assert norm.format == "bfloat16"
    assert norm.updates is not None
    if wrap is not StochasticRounding:  # which moves weights by whole ulps
        assert norm.updates.lost_share > 0.8


@pytest.mark.parametrize("wrap", [None, Float32State])
def test_a_doctor_finds_the_norm_frozen_where_nothing_is_kept(wrap: Any) -> None:
    _, evidence = trained(wrap, torch.bfloat16, 0.01)
    found = {f.rule: f for f in Report.of(evidence).findings}
    assert [s.name for s in found["PD101"].subjects] == ["norm.weight"]
    assert not any(b.preserves for b in evidence.optimizers[0].benches)


def test_float32_state_cures_the_second_moment_alone() -> None:
    rules = [
        {f.rule for f in Report.of(trained(w, torch.bfloat16, 0.01)[1]).findings}
        for w in (None, Float32State)
    ]
    assert "PD301" in rules[0]
    assert "PD301" not in rules[1]
