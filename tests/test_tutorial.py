"""What the tutorial shows is what its commands print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.scenario
def test_the_tutorial_shows_what_its_commands_print() -> None:
    command = [sys.executable, "docs/outputs.py", "docs/tutorial.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
