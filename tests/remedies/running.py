"""Tiny programs, ill and healthy, and how they are run under a treatment."""

from __future__ import annotations

import functools
import gc
from dataclasses import dataclass
from pathlib import Path

import pytest

from precdoctor.evidence import Evidence, Parameter
from precdoctor.remedies import Dose
from precdoctor.remedies.intervention import Intervention
from precdoctor.rules import diagnose
from precdoctor.script import scan

#: a small net whose norm starts at 1.0 and whose weights are cast: {cast} is the line that makes it ill
NET = """
import torch
from torch import nn
torch.manual_seed(0)

class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt().to(x.dtype) * self.weight

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 32)
        self.norm = Norm(32)
        self.outer = nn.Linear(32, 1)

    def forward(self, x):
        return self.outer(self.norm(torch.relu(self.inner(x))))

model = Net()
{cast}
optimizer = {optimizer}
data = torch.Generator().manual_seed(1)
for step in range({steps}):
    x = torch.randn(16, 8, generator=data)
    out = model(x.to(next(model.parameters()).dtype))
    loss = (out.float().squeeze(1) - x.sum(1)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""
CAST = "model = model.to(torch.bfloat16)"
ADAM = "torch.optim.AdamW(model.parameters(), lr=3e-4)"


def net(cast: str = CAST, optimizer: str = ADAM, steps: int = 12) -> str:
    return NET.format(cast=cast, optimizer=optimizer, steps=steps)


@dataclass
class Treated:
    evidence: Evidence
    intervention: Intervention

    @property
    def losses(self) -> list[float]:
        return [loss for _, loss in self.evidence.losses]

    @property
    def formats(self) -> set[str]:
        return {p.format for p in self.evidence.parameters}

    def named(self, name: str) -> Parameter:
        return next(p for p in self.evidence.parameters if p.name == name)

    def ill(self, rule: str = "PD101") -> set[str]:
        findings = diagnose(self.evidence).findings
        return {s.name for f in findings if f.rule == rule for s in f.subjects}


def run(
    text: str,
    remedy: str | None = None,
    *subjects: str,
    steps: int | None = None,
    ended: str = "finished",
    **settings: float | str,
) -> Treated:
    """Run a program, which has to end as said, under a dose of a remedy; None: untreated."""
    gc.collect()  # models of programs that ran before would take the plain names
    Path("train.py").write_text(text)
    dose = None if remedy is None else Dose(remedy=remedy, settings=settings, subjects=subjects)
    intervention = Intervention(dose)
    evidence = scan("train.py", steps=steps, intervention=intervention)
    assert evidence.run.ended == ended, evidence.run.error
    return Treated(evidence, intervention)


@functools.cache
def losses_of(text: str) -> list[float]:
    """Return the losses of an untreated program, run once for all tests that compare with it."""
    return run(text).losses


def harms_no_healthy_one(remedy: str, *subjects: str, applies: bool = False, **settings: float | str) -> None:
    """Assert that a float32 program gives the same losses to the last bit."""
    healthy = net(cast="")
    untreated, treated = run(healthy), run(healthy, remedy, *subjects, **settings)
    assert treated.losses == untreated.losses != []
    assert treated.intervention.acted is applies


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
