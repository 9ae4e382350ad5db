"""Commands run side by side: all of them, as many at once as told, and none left behind by a failure."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from precdoctor.reproduce.processes import cores, side_by_side

Program = Callable[[str], list[str]]


@pytest.fixture
def python(tmp_path: Path) -> Program:
    """Return what writes a program, and returns the command that runs it."""
    numbers = itertools.count()

    def command(code: str) -> list[str]:
        script = tmp_path / f"program{next(numbers)}.py"
        script.write_text(code, encoding="utf-8")
        return [sys.executable, str(script)]

    return command


def test_runs_all_and_says_what_came_of_each(
    tmp_path: Path, python: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {name: python(f"print({name!r})") for name in ("a", "b", "c")}
    side_by_side(commands, tmp_path, lambda name: f"done with {name}", at_once=2)
    assert (tmp_path / "c.out").read_text().strip() == "c"
    told = sorted(line.partition("] ")[2] for line in capsys.readouterr().err.splitlines())
    assert told == [f"{name}: done with {name}" for name in commands]


def test_no_more_run_at_once_than_told(tmp_path: Path, python: Program) -> None:
    code = "import time; print(time.time()); time.sleep(0.3); print(time.time())"
    side_by_side({"a": python(code), "b": python(code)}, tmp_path, str, at_once=1)
    (_, end), (start, _) = ((tmp_path / f"{name}.out").read_text().split() for name in "ab")
    assert float(end) < float(start)


def test_a_failure_tells_the_last_errors_and_ends_the_others(tmp_path: Path, python: Program) -> None:
    commands = {"slow": python("import time; time.sleep(60)"), "bad": python("raise ValueError('no such')")}
    start = time.monotonic()
    with pytest.raises(click.ClickException, match=r"(?s)bad ended with exit code 1.*no such"):
        side_by_side(commands, tmp_path, str, at_once=2)
    assert time.monotonic() - start < 30


def test_a_program_runs_as_under_python(tmp_path: Path, python: Program) -> None:
    (tmp_path / "beside.py").write_text("text = 'found'\n", encoding="utf-8")
    code = "import sys, beside; print(__name__, sys.argv[1:], beside.text); sys.exit(0)"
    side_by_side({"a": [*python(code), "--x", "1"]}, tmp_path, str)
    assert (tmp_path / "a.out").read_text().splitlines()[0] == "__main__ ['--x', '1'] found"


def test_a_module_runs_as_under_python(tmp_path: Path) -> None:
    side_by_side({"a": [sys.executable, "-m", "precdoctor", "explain", "PD101"]}, tmp_path, str)
    assert "PD101" in (tmp_path / "a.out").read_text()


def test_there_is_a_core() -> None:
    assert cores() >= 1
