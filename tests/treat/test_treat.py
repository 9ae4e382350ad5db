"""Treating a program as a user does: the runs, the table of outcomes, what is kept, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from precdoctor.cli import main

#: whole programs, several times, in processes of their own
pytestmark = pytest.mark.scenario

#: a norm scale at 1.0 in bfloat16, frozen at this learning rate
TRAIN = """
import torch
from torch import nn
torch.set_num_threads(1)
FORMAT = torch.bfloat16
class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))
    def forward(self, x):
        return x * self.weight
model = nn.Sequential(Norm(), nn.Linear(64, 8)).to(FORMAT)
opt = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
AFTER_CAST = None
for step in range(100):
    x = torch.randn(16, 64)
    loss = (model(x.to(FORMAT)).float() - x[:, :8]).square().mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    print("step", step)
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def script(text: str) -> str:
    Path("train.py").write_text(text)
    return "train.py"


def treat(*arguments: str) -> Result:
    command = ("treat", "--steps", "12", "--json", "r.json", *arguments)
    return CliRunner().invoke(main, command, prog_name="precdoctor")


def trials() -> dict[str, dict[str, Any]]:
    return {trial["label"]: trial for trial in json.loads(Path("r.json").read_text())["trials"]}


def test_cures_a_frozen_norm_and_keeps_what_it_ran() -> None:
    name = script(TRAIN)
    wanted = ("--only", "master-weights,stochastic-rounding", "--jobs", "2")
    first = treat(*wanted, name)
    assert first.exit_code == 1, first.output  # the program is ill as it is
    found = trials()
    assert list(found) == ["untreated", "float32", "master-weights", "stochastic-rounding"]
    assert found["untreated"]["edq"] == 0.0
    assert found["untreated"]["found"] == ["PD101"]
    assert found["float32"]["edq"] == pytest.approx(1.0, abs=1e-3)
    assert {found[label]["outcome"] for label in wanted[1].split(",")} == {"cured"}, found
    masters = found["master-weights"]
    assert masters["travel_share"] == pytest.approx(1.0, abs=0.2)
    assert masters["rules"] == ["PD101"]
    assert masters["subjects"] == ["0.weight"]
    # two formats of 2 bytes for weight and gradient, two moments; then masters and moments in float32
    assert found["untreated"]["bytes_per_parameter"] == pytest.approx(8, rel=0.05)
    assert masters["bytes_per_parameter"] == pytest.approx(16, rel=0.05)
    assert masters["bytes_per_parameter_estimated"] == pytest.approx(16, rel=0.05)
    assert masters["step_time_ratio"] is None  # two ran at a time
    assert "step 0" not in first.output

    second = treat(*wanted, name)
    assert second.stderr.count("kept from an earlier time") == 4
    assert trials() == found

    third = treat(*wanted, "--select", "PD2", name)
    assert third.exit_code == 0
    assert trials()["master-weights"]["outcome"] == "no effect"  # nothing that is selected asked for it


def test_leaves_the_healthy_alone() -> None:
    name = script(TRAIN.replace("bfloat16", "float32"))
    result = treat(name)
    assert result.exit_code == 0, result.output
    assert "nothing to treat: No precision illness in 12 optimizer steps" in result.stderr
    assert trials() == {}
    start = time.time()
    treat(name)
    folders = list(Path("cache/precdoctor/trials").iterdir())
    assert (folders[0] / "evidence.json").stat().st_mtime < start
    treat("--fresh", name)
    assert folders == list(Path("cache/precdoctor/trials").iterdir())
    assert (folders[0] / "evidence.json").stat().st_mtime > start


def test_a_treatment_under_which_the_program_fails_is_an_outcome() -> None:
    fails = "assert model[1].weight.dtype == FORMAT, 'not in float32'"
    dies = "if type(opt).__module__ and opt._optimizer_step_pre_hooks: os.kill(os.getpid(), signal.SIGKILL)"
    text = "import os, signal\n" + TRAIN.replace("AFTER_CAST = None", f"{fails}\n{dies}")
    result = treat("--only", "autocast,kahan", script(text))
    assert result.exit_code == 1, result.output
    found = trials()
    assert found["autocast"]["outcome"] == "does not apply"
    assert found["autocast"]["error"] == "AssertionError: not in float32"
    assert found["float32"]["error"] == "AssertionError: not in float32"
    assert found["kahan"]["outcome"] == "does not apply"
    assert found["kahan"]["error"] == "killed by SIGKILL (out of memory?)"
    log = next(line for line in result.stderr.splitlines() if "autocast" in line).rpartition(": ")[2]
    assert "AssertionError: not in float32" in Path(log).read_text()


def test_a_program_that_fails_untreated_shows_its_traceback_and_is_not_treated() -> None:
    result = treat(script(TRAIN.replace("AFTER_CAST = None", "1 / 0")))
    assert result.exit_code == 3
    assert 'train.py", line 14, in <module>' in result.stderr
    assert "ZeroDivisionError" in result.stderr
    assert "precdoctor/" not in result.stderr.partition("Traceback")[2].partition("ZeroDivisionError")[0]
    assert trials() == {}


def test_what_needs_an_edit_is_said_and_not_tried() -> None:
    severed = TRAIN.replace("bfloat16", "float32").replace(".mean()", ".mean().detach().requires_grad_()")
    result = treat(script(severed))
    assert result.exit_code == 1
    assert "not tried, needs an edit by hand: reconnect (PD202)" in result.stderr
    assert "nothing can be tried from outside" in result.stderr


def test_a_severed_quantizer_is_cured_beside_a_run_without_any() -> None:
    severed = TRAIN.replace("bfloat16", "float32").replace(
        "x * self.weight", "x * self.weight.mul(8).round().div(8)"
    )
    result = treat(script(severed))
    assert "ste: cured" in result.stderr, result.stderr
    found = trials()
    assert list(found) == ["untreated", "float32", "ste"]
    assert found["float32"]["settings"] == {"quantizers": "bypassed"}
    assert found["float32"]["why"] == "no quantizer acts: products get the weights themselves"
    assert found["untreated"]["travel_share"] == 0
    assert found["ste"]["travel_share"] == pytest.approx(1, abs=0.5)
    assert found["ste"]["step_time_ratio"] is None  # it is the trial that is slow
    assert "Next: precdoctor explain ste" in result.stdout


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let processes be interrupted: jobs in the background of a shell, and what they start, are not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_all_runs_and_shows_what_is_known() -> None:
    waits = (
        "import os, time\nif model[1].weight.dtype != FORMAT:\n    open('pid', 'w').write(str(os.getpid()))\n"
    )
    name = script(TRAIN.replace("AFTER_CAST = None", waits + "    time.sleep(600)"))
    command = [sys.executable, "-m", "precdoctor", "treat", "--steps", "12", "--json", "r.json", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not Path("pid").exists() or not Path("pid").read_text():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "PD101" in output
    assert list(trials()) == ["untreated"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)
    assert not [path for path in Path("cache/precdoctor/trials").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nowhere.py",), "nowhere.py: no such file"),
        (("--only", "prayer", "train.py"), "no remedy 'prayer'"),
        (("--steps", "3", "train.py"), "--steps"),
    ],
)
def test_bad_input_gets_one_line(arguments: tuple[str, ...], text: str) -> None:
    result = CliRunner().invoke(main, ("treat", *arguments), prog_name="precdoctor")
    assert result.exit_code == 2
    assert text in result.stderr
    assert len(result.stderr.splitlines()) == 1
