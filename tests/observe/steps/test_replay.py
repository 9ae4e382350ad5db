"""The intended update found on watched elements equals a full float64 step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from precdoctor.doctor import Doctor
from tests.reference.updates import exact_updates
from tests.test_harmless import OPTIMIZERS


def run(
    make: Callable[[Any], torch.optim.Optimizer],
    dtype: torch.dtype,
    watch: int,
    *,
    scalars: int = 0,
    alone: bool = False,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the summed intended updates of every parameter: exact, and as the Doctor saw them.

    ``scalars`` factors without dimensions are trained with the model, or ``alone``.
    """
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(24, 80), nn.Tanh(), nn.Linear(80, 5)).to(dtype)
    factors = [nn.Parameter(torch.tensor(0.7 + 0.1 * i, dtype=dtype)) for i in range(scalars)]
    optimizer = make([*([] if alone else model.parameters()), *factors])
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    sums = [torch.zeros(p.shape, dtype=torch.float64) for p in stepped]
    doctor = Doctor(every=1, watch=watch)
    with doctor:
        for _ in range(5):
            x = torch.randn(16, 24, dtype=torch.float32).to(dtype)
            out = model(x).float()
            for factor in factors:
                out = out * factor
            out.square().mean().backward()
            for total, update in zip(sums, exact_updates(optimizer), strict=True):
                total += update
            optimizer.step()
            optimizer.zero_grad()
    seen: dict[int, torch.Tensor] = {}
    for lanes in doctor._monitor.lanes.values():
        for lane in lanes:
            for reference, segment, one in zip(
                lane.parameters, lane.ledger.segments, lane.watches, strict=True
            ):
                p = reference()
                if p is None:  # the reference's own optimizer steps were seen as well
                    continue
                index = [one.position(i) for i in range(one.count)]
                place = next(i for i, q in enumerate(stepped) if q is p)
                sums[place] = sums[place].reshape(-1)[index]
                seen[place] = lane.ledger.u[segment.start : segment.stop].double()
    return sums, [seen[i] for i in range(len(stepped))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n not in ("Muon", "AdamW tensor lr", "Adafactor")])
def test_equals_a_full_float64_step(name: str, dtype: torch.dtype) -> None:
    exact, seen = run(OPTIMIZERS[name], dtype, watch=64)
    for a, b in zip(exact, seen, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6 * float(a.abs().max()))


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "ASGD"])
def test_parameters_without_dimensions_are_replayed_too(name: str, alone: bool) -> None:
    exact, seen = run(getattr(torch.optim, name), torch.float32, watch=64, scalars=3, alone=alone)
    for a, b in zip(exact, seen, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6 * float(a.abs().max()))


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_replays_whole_tensors_where_elements_depend_on_each_other(name: str) -> None:
    exact, seen = run(OPTIMIZERS[name], torch.float32, watch=64)
    for a, b in zip(exact, seen, strict=True):
        # Muon orthogonalises in bfloat16 inside, whatever the weights' format
        assert torch.allclose(a, b, rtol=2e-2, atol=1e-2 * float(a.abs().max()))


class Compact(torch.optim.Optimizer):
    """RMSprop with a momentum that it makes in float32 and squares that it keeps in float16."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-3})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["m"] = torch.zeros_like(p, dtype=torch.float32)
                state["v"] = torch.zeros_like(p, dtype=torch.float16)
            state["m"].lerp_(p.grad, 0.1)
            state["v"].copy_(0.9 * state["v"].float() + 0.1 * p.grad.square())
            p.sub_(1e-3 * state["m"] / (state["v"].float().sqrt() + 1e-4))


def test_an_optimizer_that_makes_its_state_in_float32_is_replayed() -> None:
    weight = nn.Parameter(torch.ones(64))
    optimizer, travel = Compact([weight]), torch.zeros(64)
    with Doctor(every=1) as doctor:
        for _ in range(6):
            before = weight.detach().clone()
            weight.grad = torch.full((64,), 1e-5)  # its square is no number of float16
            optimizer.step()
            travel += weight.detach() - before
    evidence = doctor.evidence()
    (seen,) = evidence.parameters
    assert seen.updates is not None
    assert seen.updates.replay == "elementwise"
    assert seen.updates.mismatch_share == 0
    assert seen.updates.drift_applied == pytest.approx(float(travel.mean()), rel=1e-4)
    (state,) = evidence.states
    assert (state.key, state.format, state.flushed_share) == ("v", "float16", 1.0)


def test_an_optimizer_that_cannot_be_replayed_is_judged_by_motion_and_says_why() -> None:
    p = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = torch.optim.LBFGS([p], lr=0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p.float() - 3).square().sum()
        loss.backward()
        return loss

    with Doctor(every=1) as doctor:
        for _ in range(3):
            optimizer.step(closure)
    seen = doctor.evidence().parameters[0]
    assert seen.updates is not None
    assert seen.updates.replay == "none"
    assert seen.updates.why_not
    assert seen.gradient.present == 3
    assert seen.weight is not None
    assert seen.weight.moved_share == 1.0


def test_a_step_with_a_closure_is_replayed_with_the_gradient_of_the_closure() -> None:
    p = nn.Parameter(torch.ones(8))
    optimizer = torch.optim.AdamW([p], lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p - 3).square().sum()
        loss.backward()
        return loss

    with Doctor(every=1) as doctor:
        for _ in range(3):
            optimizer.step(closure)
    updates = doctor.evidence().parameters[0].updates
    assert updates is not None
    assert updates.edq[0].edq == pytest.approx(1, abs=1e-4)


def test_a_parameter_without_gradient_intends_nothing_and_keeps_its_own_counter() -> None:
    first, second = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))
    optimizer = torch.optim.AdamW([first, second], lr=0.1)
    with Doctor(every=1) as doctor:
        for step in range(8):
            optimizer.zero_grad()
            loss = (first - 3).square().sum() + (0.0 if step < 4 else (second - 3).square().sum())
            loss.backward()
            optimizer.step()
    for p, present in zip(doctor.evidence().parameters, (8, 4), strict=True):
        assert p.gradient.present == present
        assert p.updates is not None
        assert p.updates.intended == 8 * present
        assert p.updates.edq[0].edq == pytest.approx(1, abs=1e-4)
        assert p.updates.mismatch_share == 0


def test_the_users_counters_are_not_advanced() -> None:
    p = nn.Parameter(torch.ones(8))
    optimizer = torch.optim.AdamW([p], lr=torch.tensor(0.1), foreach=False)
    with Doctor(every=1):
        for _ in range(3):
            p.grad = torch.ones(8)
            optimizer.step()
    assert float(optimizer.state[p]["step"]) == 3
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)
