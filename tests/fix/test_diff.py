"""The diff is one that other tools take."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from precdoctor.fix.diff import unified

CHANGES = [
    (b"a\nb\nc\n", b"a\nB\nc\n"),
    (b"a\r\nb\r\n", b"a\r\nB\r\n"),
    (b"a\nb", b"a\nB"),
    (b"a\nb", b"a\nb\n"),
    (b"a\x0cb\n\xe9\n", b"a\x0cb\n\xea\n"),
]


@pytest.mark.parametrize(("before", "after"), CHANGES)
@pytest.mark.parametrize(
    "command", [["git", "apply"], ["patch", "-p1", "--binary", "-i"]], ids=["git", "patch"]
)
def test_makes_a_diff_that_other_tools_apply(command: list[str], before: bytes, after: bytes) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    files = [Path("train.py"), Path("deep/er/other.py")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(before)
    diff = unified({file.resolve(): (before, after) for file in files}, Path.cwd())
    Path("fix.patch").write_bytes(diff)
    subprocess.run([*command, "fix.patch"], check=True, capture_output=True)
    assert [file.read_bytes() for file in files] == [after, after]
