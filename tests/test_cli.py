"""The command line: exit codes, one line for bad input, files where they were asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from precdoctor.cli import main
from precdoctor.evidence import (
    Bench,
    Evidence,
    Group,
    Histogram,
    Optimizer,
    Parameter,
    Run,
    Updates,
    Weight,
    WindowedEdq,
    save,
)
from precdoctor.rules import CATALOGUE

SICK = """
import torch
from torch import nn
class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))
    def forward(self, x):
        return x * self.weight
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), Norm())
model = model.to(torch.bfloat16)
opt = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
for step in range(30):
    x = torch.randn(16, 64)
    loss = (model(x.bfloat16()).float() - x).square().mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="precdoctor")


def write(text: str, name: str = "train.py") -> str:
    Path(name).write_text(text)
    return name


def saved(evidence: Evidence, name: str = "evidence.json") -> str:
    save(evidence, Path(name))
    return name


EMPTY = Evidence(run=Run(target="train.py"))


@pytest.fixture
def sick() -> str:
    """Return the file name of evidence of a frozen parameter."""
    whole = WindowedEdq(window=1, edq=0.0, low=0.0, high=0.0)
    frozen = Parameter(
        name="norm.weight",
        format="bfloat16",
        shape=(64,),
        watched=64,
        optimizer=0,
        group=0,
        weight=Weight(
            abs_median=1, abs_min=1, abs_max=1, mean_first=1, mean_last=1, moved_share=0, power_of_two_share=1
        ),
        updates=Updates(
            replay="elementwise",
            intended=3200,
            lost_share=1.0,
            never_moved_share=1.0,
            edq=(whole,),
            headroom_bits=Histogram(low=-3, width=0.5, counts=(3200,)),
            headroom_energy=Histogram(low=-3, width=0.5, counts=(1,)),
            ups_intended=1600,
            downs_intended=1600,
            relative_rms=3e-4,
        ),
    )
    bench = Bench(group=0, format="bfloat16", edq_small=0.0, edq_large=1.0)
    optimizer = Optimizer(
        type="torch.optim.adamw.AdamW",
        steps=50,
        observed=50,
        groups=(Group(lr_first=3e-4, lr_last=3e-4, lr_max=3e-4, tensors=1),),
        benches=(bench,),
    )
    run_of = Run(target="train.py", steps=50, observed=50, ended="stopped")
    return saved(Evidence(run=run_of, parameters=(frozen,), optimizers=(optimizer,)))


# ---------------------------------------------------------------------- scan


def test_scan_finds_the_frozen_norm_and_writes_what_was_asked() -> None:
    command = [
        sys.executable,
        "-m",
        "precdoctor",
        "scan",
        "--html",
        "r.html",
        "--json",
        "r.json",
        "--save",
        "e.json",
    ]
    done = subprocess.run([*command, write(SICK)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\nprecdoctor: ") == 4  # how it ended, and one line per file
    assert "train.py finished after 30 optimizer steps" in done.stderr
    report = json.loads(Path("r.json").read_text())
    assert report["schema"] == "precdoctor.report/1"
    assert report["run"]["steps"] == 30
    finding = next(f for f in report["findings"] if f["rule"] == "PD101")
    assert "1.weight" in {subject["name"] for subject in finding["subjects"]}
    cause = next(place for place in finding["locations"] if place["role"] == "cause")
    assert (cause["file"], cause["line"], cause["certain"]) == ("train.py", 12, True)
    assert "<html" in Path("r.html").read_text()
    again = run("diagnose", "e.json", "--json", "again.json")
    assert again.exit_code == 1
    assert json.loads(Path("again.json").read_text())["findings"] == report["findings"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 0),
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(7)", 3),
        ("1 / 0", 3),
        ("raise KeyboardInterrupt", 0),
    ],
)
def test_scan_exits_by_how_the_script_ended(text: str, code: int) -> None:
    result = run("scan", "--json", "r.json", write(text))
    assert result.exit_code == code
    assert Path("r.json").exists()
    assert "no optimizer step was seen" in result.stderr


def test_scan_writes_where_it_was_asked_when_the_script_changes_directory() -> None:
    Path("elsewhere").mkdir()
    folder = Path.cwd()
    try:
        run("scan", "--save", "e.json", write("import os\nos.chdir('elsewhere')\n"))
    finally:
        os.chdir(folder)
    assert Path("e.json").exists()


def test_what_follows_a_module_is_the_modules() -> None:
    Path("own_module_to_run.py").write_text("import sys\nprint(sys.argv[1:])\n")
    result = run("scan", "--fail-on", "never", "-m", "own_module_to_run", "--json", "x", "-h")
    assert result.stdout == "['--json', 'x', '-h']\n", result.stderr


BAD = {
    "scan nowhere.py": "nowhere.py: no such file",
    "scan": "Missing argument 'TARGET'",
    "scan .": "is a directory",
    "scan --steps 0 train.py": "'0' is neither a whole number from 1 nor 'all'",
    "scan --every 0 train.py": "--every",
    "scan --no-such-option train.py": "--no-such-option",
    "scan --select PD9 train.py": "no rule 'PD9'",
    "scan --ignore bogus train.py": "no rule 'bogus'",
    "scan --html no/such/folder/r.html train.py": "is not a directory",
    "scan --json . train.py": "is a directory",
    "scan -m no_such_module_here": "no module named",
    "diagnose nowhere.json": "does not exist",
    "diagnose train.py": "not JSON",
    "diagnose wrong.json": "expected schema",
    "diagnose binary.json": "not a text file",
    "report evidence.json": "say where: --html report.html",
    "explain PD999": "no rule or remedy 'PD999'",
    "formats float17": "float17",
    "formats float16 --at 1": "not both",
    "frobnicate": "frobnicate",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_gets_one_clear_line_and_exit_code_2(line: str) -> None:
    write("open('ran', 'w')\n")
    Path("wrong.json").write_text('{"schema": "something else"}')
    Path("binary.json").write_bytes(b"\xff\xfe\x00")
    saved(EMPTY)
    result = run(*line.split())
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("precdoctor")
    assert BAD[line] in result.stderr
    assert not Path("ran").exists()


# ---------------------------------------------------------------------- saved evidence


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 1),
        (["--fail-on", "warning"], 1),
        (["--fail-on", "never"], 0),
        (["--ignore", "PD1"], 0),
        (["--select", "frozen-parameter"], 1),
        (["--select", "pd2, PD3"], 0),
    ],
)
def test_diagnose_exits_by_its_findings(sick: str, options: list[str], code: int) -> None:
    result = run("diagnose", sick, *options)
    assert result.exit_code == code, result.output
    assert ("PD101" in result.stdout) == bool(code or "never" in options)


def test_report_writes_page_and_json(sick: str) -> None:
    result = run("report", sick, "--html", "r.html", "--json", "r.json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "written to r.html" in result.stderr
    assert "norm.weight" in Path("r.html").read_text()
    assert json.loads(Path("r.json").read_text())["verdict"] == "ill"


# ---------------------------------------------------------------------- what needs no run


def test_rules_lists_every_rule() -> None:
    lines = run("rules").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [[rule.id, rule.name] for rule in CATALOGUE]


@pytest.mark.parametrize("name", ["PD101", "pd101", "frozen-parameter"])
def test_explain_prints_the_page_of_a_rule(name: str) -> None:
    page = run("explain", name).stdout
    assert page.startswith("# PD101 frozen-parameter\n\nUpdates are intended")
    assert "\n## Criterion\n" in page


@pytest.mark.parametrize(
    ("arguments", "expected"), [([], "e4m3fn"), (["bfloat16"], "8 bits"), (["--at", "1.0"], "0.0039")]
)
def test_formats_shows_the_formats(arguments: list[str], expected: str) -> None:
    result = run("formats", *arguments)
    assert result.exit_code == 0
    assert expected in result.stdout


def test_every_command_explains_itself() -> None:
    assert run().stdout == run("--help").stdout
    for name, command in main.commands.items():
        text = run(name, "--help").stdout
        assert command.help, name
        assert name == "rules" or "Example" in text, name


def test_light_commands_import_no_torch_and_answer_at_once(sick: str) -> None:
    commands = [
        ["--help"],
        ["rules"],
        ["explain", "PD101"],
        ["formats"],
        ["diagnose", sick, "--fail-on", "never"],
        ["report", sick, "--json", "r.json"],
    ]
    code = (
        "import sys\nfrom precdoctor.cli import main\n"
        f"for arguments in {commands}:\n"
        "    try:\n        main(arguments)\n"
        "    except SystemExit as end:\n        assert not end.code, arguments\n"
        "assert 'torch' not in sys.modules\n"
    )
    start = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.process_time() - start < 0.5
