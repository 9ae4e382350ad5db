"""What happens late in a run wakes the operation probe, once it has fallen asleep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from precdoctor.doctor import Doctor
from precdoctor.observe.probe.probe import OperationProbe
from precdoctor.rules import diagnose
from precdoctor.script import scan

#: by now it sleeps, and will for some steps
ASLEEP = 25


class Run:
    """A small model in training, watched."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def train(self, steps: int, factor: float = 1.0) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.model(torch.randn(8, 4)).square().mean() * factor
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def probe_of(self, doctor: Doctor) -> OperationProbe:
        self.train(ASLEEP)
        assert doctor._probe is not None
        assert not doctor._probe.awake
        return doctor._probe


def test_a_step_that_the_scaler_leaves_out() -> None:
    run = Run()
    with Doctor(run.model, run.optimizer, probe=True) as doctor:
        probe = run.probe_of(doctor)
        run.train(1)
        assert not probe.awake
        run.train(1, factor=float("inf"))
        assert probe.awake


@pytest.mark.parametrize("what", ["taken", "set"])
def test_the_state_of_a_model_that_is_taken_or_set(what: str) -> None:
    run = Run()
    state = run.model.state_dict()
    originals = nn.Module.state_dict, nn.Module.load_state_dict
    with Doctor(run.model, run.optimizer, probe=True) as doctor:
        probe = run.probe_of(doctor)
        if what == "taken":
            run.model.state_dict()
        else:
            run.model.load_state_dict(state)
        assert probe.awake
    assert (nn.Module.state_dict, nn.Module.load_state_dict) == originals


#: the batch grows to many micro-batches late, and the gradients in bfloat16 with it
LATE = """
import torch
from torch import nn
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Linear(32, 8).to(torch.bfloat16)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
for step in range(30):
    for micro in range(1 if step < 24 else 200):
        x = torch.rand(4, 32).to(torch.bfloat16)
        loss = model(x).float().add(3).square().mean()
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_gradients_that_are_accumulated_only_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(LATE)
    assert "PD205" in {finding.rule for finding in diagnose(scan("train.py")).findings}
