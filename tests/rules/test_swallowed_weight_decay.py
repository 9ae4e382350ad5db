from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from precdoctor.doctor import Doctor
from precdoctor.evidence import Accumulation, Decay, Parameter, Place
from precdoctor.rules.frozen_average import FrozenAverage
from precdoctor.rules.swallowed_weight_decay import SwallowedWeightDecay
from tests.observe.steps.test_bench import Shrinking
from tests.reference import optimizers as reference
from tests.rules.build import CAST, evidence, lost, norm, parameter, updates
from tests.rules.build import with_bench as benched

judge = SwallowedWeightDecay.criterion


def decayed(**changes: Any) -> Parameter:
    values = {"per_step": 1e-3, "arrived": 0.01, "low": -0.02, "high": 0.04, "intended_total": 0.6}
    fmt = changes.pop("format", "bfloat16")
    return parameter(format=fmt, updates=updates(decay=Decay(**{**values, **changes})))


def test_finds_decay_that_never_arrives() -> None:
    (finding,) = judge(evidence(decayed()))
    assert finding.severity == "warning"
    assert "shrinks a weight by 0.001 of itself per step" in finding.message
    assert "half a bfloat16 ulp is 0.00195 .. 0.00391 of it; 1 % arrived" in finding.message
    assert finding.locations[0].place == CAST


@pytest.mark.parametrize(
    ("per_step", "total", "severity"),
    [(1e-5, 0.0015, "note"), (1e-5, 0.05, "warning"), (5e-4, 0.01, "warning"), (4.9e-4, 0.049, "note")],
)
def test_is_a_note_until_it_matters(per_step: float, total: float, severity: str) -> None:
    (finding,) = judge(evidence(decayed(per_step=per_step, intended_total=total)))
    assert finding.severity == severity
    assert bool(finding.prescriptions) == (severity == "warning")


def test_is_silent_when_a_fifth_or_more_may_have_arrived() -> None:
    assert judge(evidence(decayed(high=0.21))) == []


def test_is_silent_in_float32_and_about_optimizers_that_carry() -> None:
    assert judge(evidence(decayed(format="float32"))) == []
    assert judge(benched(evidence(decayed()), edq_small=1.0)) == []


def test_decay_beside_what_is_carried_is_lost_as_well() -> None:
    assert judge(benched(evidence(decayed(gone=1.0)), edq_small=1.0))
    assert judge(benched(evidence(decayed(gone=0.5)), edq_small=1.0)) == []
    assert judge(benched(evidence(decayed(gone=1.0, high=1.1)), edq_small=1.0)) == []  # by chance


class DecayBeside(reference.Kahan):
    """Decay beside what is compensated."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        decay, group["weight_decay"] = group["weight_decay"], 0.0
        for p in group["params"]:
            p.mul_(1 - group["lr"] * decay)
        super().step()
        group["weight_decay"] = decay


@pytest.mark.parametrize(
    ("kind", "swallowed"),
    [
        (DecayBeside, True),
        (reference.Kahan, False),
        (reference.OwnMaster, False),
        (reference.StochasticRounding, False),
    ],
)
def test_what_optimizers_carry_is_told_from_what_they_do_beside_it(
    kind: type[torch.optim.Optimizer], swallowed: bool
) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(512).bfloat16())
    optimizer = kind([weight], lr=1e-2, weight_decay=0.05)  # type: ignore[call-arg]
    with Doctor(every=1) as doctor:
        for _ in range(12):
            weight.grad = 0.1 * torch.randn(512).bfloat16()
            optimizer.step()
    assert bool(judge(doctor.evidence())) == swallowed


def test_a_decay_of_another_name_is_found() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(512).bfloat16())
    optimizer = Shrinking([weight], lr=0.02, wd=0.05)
    with Doctor(every=1) as doctor:
        for _ in range(12):
            weight.grad = torch.randn(512).bfloat16()
            optimizer.step()
    (finding,) = judge(doctor.evidence())
    assert finding.measured["decay_per_step"] == pytest.approx(1e-3, rel=1e-3)


def test_leaves_frozen_parameters_to_pd101() -> None:
    decay = Decay(per_step=1e-3, arrived=0.0, low=0.0, high=0.0, intended_total=0.6)
    assert judge(evidence(norm(updates=lost(decay=decay)))) == []


def by_hand(**changes: Any) -> Accumulation:
    """Return what a line that scales the parameters does."""
    values: dict[str, Any] = {
        "kind": "average",
        "only_scaled": True,
        "trained": True,
        "format": "bfloat16",
        "updates": 40,
    }
    values |= {"decay": 0.9995, "edq": 0.0, "edq_low": 0.0, "edq_high": 0.01, "lost_share": 1.0}
    values |= {"first_step": 1, "last_step": 200, "names": (parameter().name,)}
    return Accumulation(**{**values, "place": Place(file="train.py", line=9), **changes})


@pytest.mark.parametrize(
    ("changes", "severities"),
    [
        ({}, ["warning"]),
        ({"decay": 0.99995, "last_step": 400}, ["note"]),
        ({"decay": 0.99995, "last_step": 2000}, ["warning"]),
        ({"edq_high": 0.3}, []),
        ({"format": "float32"}, []),
        ({"updates": 2}, []),
        ({"only_scaled": False}, []),
        ({"trained": False}, []),
        ({"decay": 0.99995, "last_step": 1, "updates": 2000}, ["warning"]),
    ],
)
def test_finds_decay_by_hand_that_never_arrives(changes: dict[str, Any], severities: list[str]) -> None:
    seen = evidence(parameter(), accumulations=(by_hand(**changes),))
    found = judge(seen)
    assert [finding.severity for finding in found] == severities
    if found:
        assert "at train.py:9, which changes nothing" in found[0].message
        assert FrozenAverage.criterion(seen) == []


def test_is_silent_without_decay() -> None:
    assert judge(evidence(parameter())) == []
