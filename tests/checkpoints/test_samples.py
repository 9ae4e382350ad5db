"""Every sample program that writes checkpoints: `precdoctor diff` finds exactly what is expected."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

from precdoctor import Report, diff
from tests.test_sample_models import SAMPLES, Expectation, expectations

MARK = re.compile(r"^# diff with: (.+)$", re.MULTILINE)
NAMES = sorted(path.name for path in SAMPLES.glob("*.py") if MARK.search(path.read_text("utf-8")))


def examined(name: str, folder: Path, *arguments: str) -> Report:
    source = (SAMPLES / name).read_text("utf-8")
    files = MARK.search(source)
    assert files is not None
    subprocess.run([sys.executable, SAMPLES / name, *arguments], cwd=folder, check=True, capture_output=True)
    return diff(*(folder / file for file in files[1].split()))


def names_all(expectation: Expectation, names: list[str]) -> bool:
    """Tell whether the names, without what a container adds, are those expected."""
    plain = [name.removeprefix("model.") for name in names]
    return all(any(fnmatch.fnmatchcase(n, p) for p in expectation.patterns) for n in plain) and all(
        any(fnmatch.fnmatchcase(n, p) for n in plain) for p in expectation.patterns
    )


def test_there_are_such_samples() -> None:
    assert {"unchanged_parameter.py", "swallowed_next_update.py", "non_finite_checkpoint.py"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_finds_exactly_what_the_program_expects(name: str, tmp_path: Path) -> None:
    report = examined(name, tmp_path)
    (expected,) = expectations((SAMPLES / name).read_text("utf-8"))
    (found,) = [f for f in report.findings if f.severity != "note"]
    assert found.rule == expected.rule
    assert names_all(expected, [s.name for s in found.subjects])
    assert report.verdict == "ill"
    assert found.prescriptions


@pytest.mark.parametrize("name", NAMES)
def test_is_silent_about_the_healthy_twin(name: str, tmp_path: Path) -> None:
    report = examined(name, tmp_path, "--healthy")
    assert [f.message for f in report.findings if f.severity != "note"] == []
    assert report.verdict == "healthy"
