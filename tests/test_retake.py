"""A run whose loss turned NaN while nobody looked is run again; what cannot be repeated is not believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: whole programs, several times, in processes of their own
pytestmark = pytest.mark.scenario

#: the square leaves the range of float16 after some fifty steps
LATE = """
import os
import torch
from torch import nn
torch.manual_seed({seed})
open("runs", "a").write("x")
print("hello from the script")
model = nn.Linear(8, 8)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(80):
    hidden = model(torch.randn(16, 8)).half() * (1 + step * {growth})
    energy = hidden * hidden
    loss = torch.log(1 + energy.float()).mean() / (1 + energy).float().mean() * {factor}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def scan(folder: Path, *options: str, seed: str = "0", growth: int = 3, factor: str = "1") -> tuple[Any, str]:
    (folder / "train.py").write_text(LATE.format(seed=seed, growth=growth, factor=factor))
    command = [sys.executable, "-m", "precdoctor", "scan", "--fail-on", "never", "--steps", "all"]
    done = subprocess.run(
        [*command, "--json", "report.json", *options, "train.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert done.stdout == "hello from the script\n"
    return json.loads((folder / "report.json").read_text()), done.stderr


def origins(report: Any) -> list[tuple[str, list[int]]]:
    return [
        (finding["rule"], [place["line"] for place in finding["locations"]])
        for finding in report["findings"]
        if finding["rule"].startswith("PD5")
    ]


def test_a_late_overflow_is_found_at_its_line(tmp_path: Path) -> None:
    report, said = scan(tmp_path)
    assert "running the script again" in said
    assert (tmp_path / "runs").read_text() == "xx"
    assert origins(report) == [("PD503", [12])]


#: two inputs are alike after some twenty steps, and a root has no derivative at zero
ALIKE = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
for step in range(40):
    one, other = torch.randn(16, 8), torch.randn(16, 8)
    if step == 23:
        other[3] = one[3]
    distance = (model(one) - model(other)).square().sum(1).sqrt()
    loss = torch.relu(5 - distance).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_a_late_gradient_that_is_not_finite_is_found_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(ALIKE)
    command = [sys.executable, "-m", "precdoctor", "scan", "--fail-on", "never", "--json", "report.json"]
    subprocess.run([*command, "train.py"], cwd=tmp_path, check=True, capture_output=True)
    assert origins(json.loads((tmp_path / "report.json").read_text())) == [("PD501", [11])]


def test_a_run_that_cannot_be_repeated_is_not_believed(tmp_path: Path) -> None:
    report, _ = scan(tmp_path, seed='int.from_bytes(os.urandom(4), "big")')
    ((rule, _),) = origins(report)
    assert rule == "PD501"
    assert any("it cannot be repeated" in limit for limit in report["run"]["limits"])


def test_a_healthy_run_is_not_repeated(tmp_path: Path) -> None:
    report, said = scan(tmp_path, growth=0)
    assert "running the script again" not in said
    assert (tmp_path / "runs").read_text() == "x"
    assert origins(report) == []


def test_the_shadow_looks_at_all_steps_at_once(tmp_path: Path) -> None:
    report, said = scan(tmp_path, "--probe", "shadow")
    assert "running the script again" not in said
    assert origins(report) == [("PD503", [12])]
    assert (tmp_path / "runs").read_text() == "x"


def test_it_can_be_left_out(tmp_path: Path) -> None:
    report, _ = scan(tmp_path, "--no-probe", "--no-retake")
    assert (tmp_path / "runs").read_text() == "x"
    assert [rule for rule, _ in origins(report)] == ["PD501"]
