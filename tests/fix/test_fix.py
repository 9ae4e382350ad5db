"""The whole way: a sick program in several files, its cure written, proved on a copy, applied."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from precdoctor.cli import main
from precdoctor.evidence import Evidence, Run
from precdoctor.fix import command
from precdoctor.fix.proof import Scan
from precdoctor.rules import diagnose
from tests.fix.build import save, text
from tests.fix.test_files import git

TRAIN = """
    import sys
    import torch
    from lib.loop import Loop
    from lib.net import Net

    torch.manual_seed(0)
    torch.set_num_threads(1)
    text = open("data/text.txt").read()  # by a relative path
    net = Net(16)
    net = net.to(torch.bfloat16)  # lean
    print("secret", text)
    Loop(net, torch.optim.AdamW(net.parameters(), lr=3e-4)).run(int(sys.argv[1]))
    """
NET = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(dim))
            self.out = nn.Linear(dim, dim)

        def forward(self, x):
            return self.out(x * self.scale)
    """
LOOP = """
    import torch
    from torch.nn import functional as F


    class Loop:
        def __init__(self, model, opt):
            self.model, self.opt = model, opt

        def run(self, steps):
            for _ in range(steps):
                x = torch.randn(8, 16)
                y = self.model(x.to(self.model.scale.dtype))
                # far from the target
                loss = F.mse_loss(y.float(), x + 3)
                self.opt.zero_grad()
                loss.backward()
                self.opt.step()
    """
PATCH = """\
--- a/lib/loop.py
+++ b/lib/loop.py
@@ -9,9 +9,10 @@
     def run(self, steps):
         for _ in range(steps):
             x = torch.randn(8, 16)
-            y = self.model(x.to(self.model.scale.dtype))
-            # far from the target
-            loss = F.mse_loss(y.float(), x + 3)
+            with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
+                y = self.model(x.to(self.model.scale.dtype))
+                # far from the target
+                loss = F.mse_loss(y.float(), x + 3)
             self.opt.zero_grad()
             loss.backward()
             self.opt.step()
--- a/train.py
+++ b/train.py
@@ -7,6 +7,5 @@
 torch.set_num_threads(1)
 text = open("data/text.txt").read()  # by a relative path
 net = Net(16)
-net = net.to(torch.bfloat16)  # lean
 print("secret", text)
 Loop(net, torch.optim.AdamW(net.parameters(), lr=3e-4)).run(int(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def _children_find_precdoctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@pytest.fixture
def project() -> None:
    save(TRAIN)
    save(NET, "lib/net.py")
    save(LOOP, "lib/loop.py")
    save("found", "data/text.txt")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["fix", *arguments], prog_name="precdoctor")


def sources() -> dict[str, str]:
    return {str(path): path.read_text() for path in sorted(Path().rglob("*.py*")) if path.is_file()}


@pytest.mark.usefixtures("project")
def test_fixes_a_program_in_several_files() -> None:
    git("init")
    git("add", ".")
    git("commit", "-m", "sick")
    found = run("--steps", "12", "--write", "train.py", "12")
    assert found.exit_code == 0, found.stderr
    assert found.stdout == PATCH
    assert "autocast holds: the edited copy ran, and PD101" in found.stderr
    assert "secret" not in found.stderr
    assert Path("train.py.orig").read_text() == text(TRAIN)
    Path("fix.patch").write_text(found.stdout)
    subprocess.run(["git", "apply", "--check", "--reverse", "fix.patch"], check=True)
    git("commit", "-am", "well")
    again = run("--steps", "12", "--write", "train.py", "12")
    assert again.exit_code == 0
    assert "nothing to fix" in again.stderr
    assert again.stdout == ""


@pytest.mark.usefixtures("project")
def test_writes_nothing_when_the_proof_fails() -> None:
    with Path("lib/loop.py").open("a") as file:
        file.write("            assert self.model.scale.dtype == torch.bfloat16, 'must be lean'\n")
    before = sources()
    found = run("--steps", "12", "--remedy", "autocast", "--write", "train.py", "12")
    assert found.exit_code == 1
    assert "autocast does not hold: the edited program failed: AssertionError: must be lean" in found.stderr
    assert "not cured: PD101 frozen-parameter" in found.stderr
    assert found.stdout.startswith("--- a/lib/loop.py\n")  # it was asked for
    assert sources() == before


# ---------------------------------------------------------------------- the way without running anything


def pretend(
    monkeypatch: pytest.MonkeyPatch, evidence: Evidence | None, *, code: int = 0, log: str = ""
) -> None:
    monkeypatch.setattr(command, "scan", lambda *_: Scan(evidence=evidence, code=code, log=log))


def test_refuses_a_dirty_tree_before_it_runs_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    save("a = 1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    save("a = 2\n")
    monkeypatch.setattr(command, "scan", lambda *_: pytest.fail("it ran"))
    found = run("--write", "train.py")
    assert found.exit_code == 2
    assert "uncommitted changes" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_says_in_one_line_what_is_wrong_with_the_input() -> None:
    found = run("nowhere.py")
    assert found.exit_code == 2
    assert found.stderr == "precdoctor fix: nowhere.py: no such file (see precdoctor fix --help)\n"


def test_a_program_that_fails_by_itself_is_not_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    save("a = 1\n")
    failed = Evidence(run=Run(target="train.py", ended="failed", exit_code=1, error="KeyError: 'lr'"))
    pretend(monkeypatch, failed, code=3, log='  File "train.py", line 3')
    found = run("train.py")
    assert found.exit_code == 3
    assert "train.py fails as it is: KeyError: 'lr'\n  File \"train.py\", line 3" in found.stderr


def test_nothing_seen_is_not_nothing_to_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    save("a = 1\n")
    pretend(monkeypatch, Evidence(run=Run(target="train.py", ended="finished")))
    found = run("train.py")
    assert found.exit_code == 1
    assert "nothing can be said: No optimizer step was seen." in found.stderr


def test_says_what_to_do_by_hand_where_no_edit_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fix.test_proof import evidence

    sick = evidence(0.0)
    pretend(monkeypatch, sick)
    monkeypatch.setattr(command, "prove", lambda *_: pytest.fail("it ran"))
    found = run("--remedy", "autocast", "train.py")
    assert found.exit_code == 1
    assert "by hand (autocast): no line is known that made the weights bfloat16" in found.stderr
    assert run("--remedy", "ste", "train.py").exit_code == 2


def test_takes_the_first_cure_that_holds_in_the_order_given(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.fix.test_proof import evidence

    sick, tried, said = evidence(0.0), list[str](), list[str]()
    pretend(monkeypatch, sick)

    def prove(candidate: command.Candidate, *_: object) -> str:
        tried.append(candidate.treatment.remedy)
        return "too slow" if len(tried) == 1 else ""

    monkeypatch.setattr(command, "prove", prove)
    code = command.fix(
        command.Program(target="train.py"), said.append, order=["kahan", "stochastic-rounding"]
    )
    assert code == 0
    assert tried == ["kahan", "stochastic-rounding"]
    assert "kahan does not hold: too slow" in said
    assert "+opt = StochasticRounding(AdamW(w))" in capfd.readouterr().out
    assert Path("train.py").read_text() == "opt = AdamW(w)\n"


def test_with_diffs_fills_in_what_could_be_tried() -> None:
    from precdoctor.fix import with_diffs
    from tests.fix.test_proof import evidence

    sick = evidence(0.0)
    (finding,) = with_diffs(diagnose(sick), sick, Path.cwd()).findings
    diffs = {p.remedy: p.diff for p in finding.prescriptions}
    assert "+opt = MasterWeights(AdamW(w))" in diffs["master-weights"]
    assert diffs["autocast"] == ""
