"""What a schedule that waits for a plateau is given is noted, with its format and what came of it."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from precdoctor.doctor import Doctor
from precdoctor.rules.coarse_loss import CoarseLoss


def test_values_that_a_schedule_gets_are_noted_with_their_format() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    plateau, original = ReduceLROnPlateau(optimizer, factor=0.5, patience=2), ReduceLROnPlateau.step
    scores = [20 + 0.1 / (i + 1) for i in range(10)]
    with Doctor(probe=True) as doctor:
        for score in scores:
            plateau.step(torch.tensor(score, dtype=torch.bfloat16))  # type: ignore[arg-type]
        rate = optimizer.param_groups[0]["lr"]
        for score in scores:
            plateau.step(score)
    assert ReduceLROnPlateau.step is original
    evidence = doctor.evidence()
    coarse, exact = evidence.metrics
    assert (coarse.format, exact.format) == ("bfloat16", "")
    assert coarse.values == tuple(torch.tensor(scores).bfloat16().tolist())
    assert exact.values == tuple(scores)
    assert rate == 0.5**coarse.reductions == 0.25
    assert coarse.place is not None
    assert coarse.place.function.startswith("test_values")
    assert [f.severity for f in CoarseLoss.criterion(evidence)] == ["warning"]
