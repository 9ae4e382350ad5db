"""Every sample program, run under `precdoctor scan`: found is exactly what its `# expect:` lines say.

torch is imported once, then each program gets a process of its own by forking: three times as fast as
starting Python anew, and as separate.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).resolve().parents[1] / "sample_models" / "rules"
#: those that write checkpoints for `precdoctor diff` are in tests/checkpoints/test_samples.py
NAMES = sorted(path.name for path in SAMPLES.glob("*.py") if "\n# diff with: " not in path.read_text("utf-8"))
#: reads [[script, [options], [arguments], report], ...] from stdin and scans them, so many at a time
DRIVER = """
import json, os, sys
import torch, torch.optim.lr_scheduler
from precdoctor import cli, script
from precdoctor.report import html, json as report_json

torch.set_num_threads(1)
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # the first one imports for a second and more

running = {}

def reap():
    child, status = os.wait()
    print("exit", os.waitstatus_to_exitcode(status), *running.pop(child), flush=True)

for program, options, arguments, report in json.load(sys.stdin):
    while len(running) >= int(sys.argv[1]):
        reap()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            cli.main(["scan", "--fail-on", "never", "--json", report, *options, program, *arguments])
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    running[child] = program, *arguments
while running:
    reap()
"""
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="samples are scanned in forked processes")


@dataclass(frozen=True)
class Expectation:
    """A comment ``# expect: PD101 name name*``: the rule, its line, and the names of all its subjects.

    With ``# note`` after it, it is a note and the program healthy.
    """

    rule: str
    line: int
    patterns: tuple[str, ...]
    note: bool = False

    def is_met_by(self, finding: dict[str, Any]) -> bool:
        """Tell whether a finding has the rule, the line and these subjects, no more and no fewer."""
        names = [s["name"] for s in finding["subjects"] if s["kind"] != "optimizer"]
        return (
            finding["rule"] == self.rule
            and any(location["line"] == self.line for location in finding["locations"])
            and all(any(fnmatch.fnmatchcase(name, p) for p in self.patterns) for name in names)
            and all(any(fnmatch.fnmatchcase(name, p) for name in names) for p in self.patterns)
        )


def expectations(source: str) -> list[Expectation]:
    """Return what the comments of a program expect."""
    return [
        Expectation(rule=rule, line=number, patterns=tuple(names.split()), note=bool(note))
        for number, line in enumerate(source.splitlines(), start=1)
        for rule, names, note in re.findall(r"# expect: (PD\d{3})([^#]*)(# note)?", line)
    ]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the JSON report of every sample, ill and healthy, by (file name, argument).

    Of several workers that run tests one makes them, on the cores of all, and the others wait.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return scanned(tmp_path_factory.mktemp("samples"), 1)
    folder = tmp_path_factory.getbasetemp().parent / f"samples-{run}"
    folder.mkdir(exist_ok=True)
    import fcntl  # not on Windows

    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return scanned(folder, int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


def scanned(folder: Path, at_a_time: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Scan all samples, but for those whose reports are in the folder."""
    jobs, paths = [], {}
    for name in NAMES:
        wanted = re.search(r"^# scan with: (.+)$", (SAMPLES / name).read_text("utf-8"), re.MULTILINE)
        options = ["--every", "1", *(wanted[1].split() if wanted else ["--steps", "all"])]
        for argument in ("", "--healthy"):
            report = folder / f"{name}{argument}.json"
            paths[name, argument] = report
            if report.exists():
                continue
            jobs.append([str(SAMPLES / name), options, [argument] if argument else [], str(report)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DRIVER, str(at_a_time)],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
    )
    missing = [str(path) for path in paths.values() if not path.exists()]
    assert done.returncode == 0, done.stderr[-3000:]
    assert not missing, f"no report for {missing}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return {key: json.loads(path.read_text("utf-8")) for key, path in paths.items()}


def grave(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [f for f in report["findings"] if f["severity"] != "note"]


@pytest.mark.parametrize("name", NAMES)
def test_finds_exactly_what_the_program_expects(name: str, reports: dict[tuple[str, str], Any]) -> None:
    expected = expectations((SAMPLES / name).read_text("utf-8"))
    noted = {e.rule for e in expected if e.note}
    found = [f for f in reports[name, ""]["findings"] if f["severity"] != "note" or f["rule"] in noted]
    told = [f"{f['rule']}: {f['message']}" for f in found]
    for expectation in expected:
        assert any(expectation.is_met_by(f) for f in found), f"{expectation} not among {told}"
    for finding in found:
        assert any(e.is_met_by(finding) for e in expected), f"not expected: {finding['message']}"
    assert reports[name, ""]["verdict"] == ("healthy" if all(e.note for e in expected) else "ill")


@pytest.mark.parametrize("name", NAMES)
def test_is_silent_about_the_healthy_twin(name: str, reports: dict[tuple[str, str], Any]) -> None:
    report = reports[name, "--healthy"]
    assert [f["message"] for f in grave(report)] == []
    assert report["verdict"] == "healthy"


@pytest.mark.parametrize("name", NAMES)
def test_every_cure_has_a_reason(name: str, reports: dict[tuple[str, str], Any]) -> None:
    for finding in grave(reports[name, ""]):
        assert finding["remedies"], finding["message"]
        assert [remedy["rank"] for remedy in finding["remedies"]] == list(
            range(1, len(finding["remedies"]) + 1)
        )
        assert all(remedy["why"] for remedy in finding["remedies"])
