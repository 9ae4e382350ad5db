"""A script runs under observation as `python` would run it, and however it ends there is evidence."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from precdoctor.evidence import Evidence, load
from precdoctor.program import TargetError
from precdoctor.script import scan

TRAIN = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Linear(4, 1)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
def train(steps):
    for step in range(steps):
        loss = model(torch.ones(2, 4)).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        print("step", step, loss.item())
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("COLUMNS", "100")


def script(text: str, name: str = "train.py") -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False, **options
    )  # type: ignore[call-overload,no-any-return]


def scanned(*arguments: str) -> tuple[subprocess.CompletedProcess[str], Evidence]:
    """Run the command in a fresh process, as a user does; return what it said and the evidence."""
    run = python("-m", "precdoctor", "scan", "--save", "evidence.json", "--fail-on", "never", *arguments)
    assert Path("evidence.json").exists(), run.stderr
    return run, load(Path("evidence.json"))


# ---------------------------------------------------------------------- how it runs


def test_a_script_sees_what_python_would_show_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "import sys, pickle\n"
        "class Thing: pass\n"
        "names = sorted(n for n in globals() if n.startswith('__'))\n"
        "print(__name__, __file__, __spec__, __package__, sys.argv, sys.path[0], names)\n"
        "print(sys.modules['__main__'].Thing is Thing, type(pickle.loads(pickle.dumps(Thing()))) is Thing)\n"
        "print(type(__loader__).__name__, __builtins__ is __import__('builtins'))\n"
        "assert __name__ == '__main__'\n"
    )
    name = script(text, "folder/show.py")
    expected = python(name, "a", "--b").stdout
    before = sys.argv, sys.modules["__main__"], list(sys.path)
    scan(name, ["a", "--b"])
    assert capsys.readouterr().out == expected
    assert (sys.argv, sys.modules["__main__"], sys.path) == before


def test_a_module_sees_what_python_would_show_it(capsys: pytest.CaptureFixture[str]) -> None:
    script("", "own_package/__init__.py")
    text = (
        "import sys\n"
        "from own_package import helper\n"
        "print(__name__, __file__, __spec__.name, __package__, sys.argv, sys.path[0], helper.VALUE)\n"
    )
    script(text, "own_package/__main__.py")
    script("VALUE = 3\n", "own_package/helper.py")
    for module in ("own_package", "own_package.__main__"):
        expected = python("-m", module, "x").stdout
        evidence = scan(module, ["x"], module=True)
        assert capsys.readouterr().out == expected != ""
        assert evidence.run.target == module
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_package"]:
        del sys.modules[name]


def test_a_console_command_on_the_path_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = Path(script("#!/usr/bin/env python\nimport sys\nprint(sys.argv)\n", "bin/own-trainer"))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    scan("own-trainer", ["sft"])
    assert capsys.readouterr().out == f"['{tmp_path}/bin/own-trainer', 'sft']\n"


def test_a_script_imports_the_files_beside_it() -> None:
    script("VALUE = 7\n", "folder/beside_the_script.py")
    evidence = scan(script("import beside_the_script as b\nassert b.VALUE == 7\n", "folder/main.py"))
    assert (evidence.run.ended, evidence.run.error) == ("finished", "")
    del sys.modules["beside_the_script"]


@pytest.mark.parametrize(
    ("target", "module", "message"),
    [
        ("nowhere.py", False, "nowhere.py: no such file"),
        ("nowhere", False, "nor a command on PATH"),
        (".", False, "is a directory"),
        ("data.bin", False, "not a Python program"),
        ("notes.txt", False, "not a Python program"),
        ("no_such_module_here", True, "no module named"),
        ("json.no_such_part", True, "no module named"),
        ("email", True, "cannot be run"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(target: str, module: bool, message: str) -> None:
    Path("data.bin").write_bytes(b"\x7fELF\0\1")
    Path("notes.txt").write_text("dear diary,")
    with pytest.raises(TargetError, match=message) as caught:
        scan(target, module=module)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- how it ends


def test_a_script_that_finishes(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    evidence = scan(script(TRAIN + "train(3)\n"), ["--x"], steps=None, progress=seen.append)
    run = evidence.run
    assert (run.target, run.argv, run.ended, run.exit_code, run.steps) == (
        "train.py",
        ("--x",),
        "finished",
        0,
        3,
    )
    assert (run.error, run.limits) == ("", ())
    assert run.seconds > 0
    assert run.started
    assert seen == [0, 1, 2, 3]
    assert capsys.readouterr().out.count("step") == 3
    (weight,) = (p for p in evidence.parameters if p.updates is not None and p.shape == (1, 4))
    assert weight.created is not None
    assert weight.created.code == "model = nn.Linear(4, 1)"
    assert any("model = nn.Linear(4, 1)" in lines for _, _, lines in evidence.excerpts)


def test_a_script_is_stopped_after_the_steps_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    ending = "try:\n    train(10)\nfinally:\n    print('cleaned up')\nprint('not reached')\n"
    run = scan(script(TRAIN + ending), steps=2).run
    assert (run.ended, run.exit_code, run.steps) == ("stopped", 0, 2)
    assert capsys.readouterr().out.splitlines()[1:] == ["cleaned up"]


def test_a_script_that_swallows_the_stop_is_stopped_at_its_next_step() -> None:
    ending = (
        "for _ in range(5):\n    try:\n        train(10)\n    except BaseException:\n        pass\n1 / 0\n"
    )
    run = scan(script(TRAIN + ending), steps=2).run
    assert (run.ended, run.steps, run.error) == ("stopped", 6, "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # python ignores it too
def test_training_in_a_thread_is_waited_for_and_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    ending = "import threading\nthreading.Thread(target=train, args=(10,)).start()\n"
    assert scan(script(TRAIN + ending), steps=None).run.steps == 10
    assert scan(script(TRAIN + ending), steps=4).run.ended == "stopped"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("end", "ended", "code", "stderr"),
    [
        ("sys.exit()", "finished", 0, ""),
        ("sys.exit(0)", "finished", 0, ""),
        ("sys.exit(3)", "exited", 3, ""),
        ("sys.exit('no data')", "exited", 1, "no data\n"),
        ("raise KeyboardInterrupt", "interrupted", 130, ""),
    ],
)
def test_a_script_that_exits(
    end: str, ended: str, code: int, stderr: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = scan(script(f"import sys\n{end}\n")).run
    assert (run.ended, run.exit_code, run.error) == (ended, code, "")
    assert capsys.readouterr().err == stderr


FAILURES = {
    "in the script": "def f():\n    return 1 / 0\nf()\n",
    "at its syntax": "def f(:\n",
    "at an import": "import no_such_module_at_all\n",
    "in a chain": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n"
    "    raise ValueError('two\\nlines') from e\n",
    "below a cast": "from torch import nn\nclass M(nn.Module):\n"
    "    def _apply(self, fn):\n        return super()._apply(lambda t: 1 / 0)\n"
    "m = M()\nm.w = nn.Parameter(__import__('torch').ones(1))\nm.half()\n",
    "below backward": "import torch\ntorch.ones(1).backward()\n",
    "below an optimizer": "import torch\ntorch.optim.SGD([], lr=1)\n",
}


@pytest.mark.parametrize("where", FAILURES)
def test_a_script_that_raises_prints_the_traceback_that_python_prints(
    where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = script(FAILURES[where])
    expected = python(name).stderr
    run = scan(name).run
    assert capsys.readouterr().err == expected
    assert (run.ended, run.exit_code) == ("failed", 1)
    last = (line for line in reversed(expected.splitlines()) if line.partition(":")[0].endswith("Error"))
    assert run.error.startswith(next(last))


def test_a_script_with_its_own_excepthook_keeps_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    text = (
        "import sys\n"
        "sys.excepthook = lambda kind, error, trace: print('mine', kind.__name__, trace.tb_lineno)\n"
        "1/0\n"
    )
    assert scan(script(text)).run.ended == "failed"
    assert capsys.readouterr().out == "mine ZeroDivisionError 3\n"


def test_a_script_that_never_steps_says_so() -> None:
    run, evidence = scanned(script("print('nothing')\n"))
    assert (run.returncode, run.stdout) == (0, "nothing\n")
    assert "train.py finished and no optimizer step was seen" in run.stderr
    assert evidence.run.steps == 0
    assert evidence.run.limits == ("torch was never imported",)
    assert evidence.run.torch == ""


def test_a_script_whose_processes_do_the_work_says_that_they_are_not_observed() -> None:
    burn = "import time\nwhile time.process_time() < 1.2: pass"
    text = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\n"
    assert "not observed" in scan(script(text)).run.limits[-1]


# ---------------------------------------------------------------------- as a user runs it


def test_output_and_weights_are_the_same_with_and_without() -> None:
    ending = (
        "import argparse, warnings\n"
        "print(argparse.ArgumentParser().prog, torch.initial_seed(), torch.rand(2), id(print) > 0)\n"
        "warnings.warn('careful')\n"
        "train(12)\nprint(list(model.parameters()), torch.rand(2))\n"
    )
    name = script(
        "import os\nos.environ['OMP_NUM_THREADS'] = '1'\n"
        + TRAIN
        + "print(torch.get_num_threads())\n"
        + ending
    )
    plain = python(name)
    run, evidence = scanned("--steps", "all", name)
    assert run.stdout == plain.stdout != ""
    assert plain.stderr in run.stderr  # the warning, at its line
    assert (evidence.run.ended, evidence.run.steps) == ("finished", 12)


def test_arguments_after_the_script_are_the_scripts_even_when_they_look_like_ours() -> None:
    text = "import argparse\np = argparse.ArgumentParser()\np.add_argument('--steps')\np.parse_args()\n"
    name = script(text)
    run, _ = scanned(name, "--help")
    assert run.stdout == python(name, "--help").stdout
    run, evidence = scanned(name, "--steps", "x")
    assert run.returncode == 0
    assert evidence.run.argv == ("--steps", "x")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_dataloader_workers_run_as_ever(method: str) -> None:
    text = TRAIN + (
        "from torch.utils.data import DataLoader, Dataset\n"
        "class Numbers(Dataset):\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, i): return torch.full((4,), float(i))\n"
        "if __name__ == '__main__':\n"
        f"    data = DataLoader(Numbers(), batch_size=4, num_workers=1, multiprocessing_context='{method}')\n"
        "    print(torch.cat(list(data)).sum())\n"
        "    train(2)\n"
    )
    run, evidence = scanned(script(text))
    assert "tensor(112.)" in run.stdout
    assert run.stdout.count("step") == 2
    assert (evidence.run.ended, evidence.run.steps) == ("finished", 2)
    assert run.stderr.count("watching") == 1


def test_a_fork_of_the_script_does_not_report() -> None:
    text = (
        "import os, sys\npid = os.fork()\nif pid == 0:\n    sys.exit(5)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    run, _ = scanned(script(text))
    assert run.stdout == "5\n"
    assert run.stderr.count("written to") == 1


def test_ctrl_c_ends_the_script_and_leaves_a_report() -> None:
    text = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n" + TRAIN
    name = script(text + "train(2)\nprint('ready', flush=True)\nimport time\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "precdoctor", "scan", "--json", "report.json", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "ready" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "was interrupted after 2 optimizer steps" in stderr
    assert "Traceback" not in stderr
    assert Path("report.json").exists()


def test_a_compiled_model_is_watched() -> None:
    text = TRAIN.replace("def train", "model = torch.compile(model, backend='eager')\ndef train")
    run, evidence = scanned(script(text + "train(3)\n"))
    assert run.returncode == 0, run.stderr
    assert evidence.run.steps == 3
    assert {p.name for p in evidence.parameters} == {"weight", "bias"}


def test_threads_left_behind_by_a_stopped_script_are_not_waited_for() -> None:
    text = (
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\n" + TRAIN + "train(9)\n"
    )
    start = time.monotonic()
    run, evidence = scanned("--steps", "3", script(text))
    assert (run.returncode, evidence.run.ended) == (0, "stopped")
    assert "was stopped after --steps 3" in run.stderr
    assert time.monotonic() - start < 100


def test_evidence_of_a_run_can_be_pickled_and_holds_no_objects_of_it() -> None:
    evidence = scan(script(TRAIN + "train(2)\n"))
    assert pickle.loads(pickle.dumps(evidence)) == evidence
