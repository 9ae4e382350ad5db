"""Commands run side by side: all of them, as many at once as told, and none left behind by a failure."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import pytest

from precdoctor.reproduce.processes import cores, side_by_side


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_runs_all_and_says_what_came_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = {name: python(f"print({name!r})") for name in ("a", "b", "c")}
    side_by_side(commands, tmp_path, lambda name: f"done with {name}", at_once=2)
    assert (tmp_path / "c.out").read_text().strip() == "c"
    told = sorted(line.partition("] ")[2] for line in capsys.readouterr().err.splitlines())
    assert told == [f"{name}: done with {name}" for name in commands]


def test_no_more_run_at_once_than_told(tmp_path: Path) -> None:
    code = "import time; print(time.time()); time.sleep(0.3); print(time.time())"
    side_by_side({"a": python(code), "b": python(code)}, tmp_path, str, at_once=1)
    (_, end), (start, _) = ((tmp_path / f"{name}.out").read_text().split() for name in "ab")
    assert float(end) < float(start)


def test_a_failure_tells_the_last_errors_and_ends_the_others(tmp_path: Path) -> None:
    commands = {"slow": python("import time; time.sleep(60)"), "bad": python("raise ValueError('no such')")}
    start = time.monotonic()
    with pytest.raises(click.ClickException, match=r"(?s)bad ended with exit code 1.*no such"):
        side_by_side(commands, tmp_path, str, at_once=2)
    assert time.monotonic() - start < 30


def test_there_is_a_core() -> None:
    assert cores() >= 1
