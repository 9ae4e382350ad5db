"""The BF16 sample program: every cure does what is known of it, and the patch makes it healthy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from precdoctor import fix
from precdoctor.treat import Program, treat
from precdoctor.treat.store import Store

SAMPLE = Path(__file__).parents[1] / "sample_models" / "bf16_moe_lm"
#: past the warm-up of 10
STEPS = 30


@pytest.mark.scenario
def test_each_cure_of_the_frozen_norms_is_called_what_it_is(tmp_path: Path) -> None:
    program = Program(target=str(SAMPLE / "train.py"), argv=("--device", "cpu"), module=False, steps=STEPS)
    came = treat(program, lambda _: None, jobs=2, select=("PD101",), store=Store(tmp_path))
    trials = {trial.label: trial for trial in came.trials}
    for label in ("autocast", "master-weights", "stochastic-rounding", "kahan", "float32-island"):
        assert trials[label].outcome == "cured", trials[label].why
    assert trials["untreated"].edq == pytest.approx(0, abs=1e-3)
    assert trials["untreated"].travel_share == 0

    tenfold = trials["group-lr x10"]  # the usual advice: it thaws some, and they drift the wrong way
    assert tenfold.outcome in ("no effect", "harmed")
    assert tenfold.edq is not None
    assert tenfold.edq < 0.7
    assert tenfold.ups < tenfold.downs
    assert tenfold.mean_last is not None
    assert tenfold.mean_last < 1

    others = [t for t in came.trials if t.remedy in ("group-lr", "reinit")]
    assert len(others) == 4
    assert not [t.label for t in others if t.outcome == "cured"]
    smaller = trials["reinit x0.1"]
    assert smaller.outcome == "harmed", smaller.why
    assert smaller.loss_difference is not None
    assert smaller.loss_difference > 0


@pytest.mark.scenario
def test_the_patch_makes_a_rescan_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    shutil.copytree(SAMPLE, tmp_path / "moe", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "moe")
    program = fix.Program(target="train.py", arguments=("--device", "cpu"), module=False, steps=STEPS)
    told: list[str] = []
    assert fix.fix(program, told.append, apply=True) == 0
    assert any(line.startswith("autocast holds") for line in told)
    patch = capfdbinary.readouterr().out.decode()
    assert "-        model = model.to(dtype=torch.bfloat16)" in patch
    assert 'with torch.autocast(device_type="cpu", dtype=torch.bfloat16):' in patch
    told.clear()
    assert fix.fix(program, told.append) == 0
    assert any(line.startswith("nothing to fix") for line in told)
