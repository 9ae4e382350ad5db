"""What scenarios share: what they are, their claims, scanning a sample program, and the table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from precdoctor import evidence

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one run showed under observation."""

    #: the report, schema precdoctor.report/1
    report: Mapping[str, Any]
    #: loss at each step, in order
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Something that is known of the case, and what the runs say about it."""

    what: str
    expected: str
    seen: str
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a scenario is asked for."""

    #: optimizer steps of each run; None: the program's own
    steps: int | None = None
    #: shorter and fewer runs, for continuous integration
    quick: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a scenario came to."""

    claims: Sequence[Claim]
    #: what is printed: the table of the claims, and whatever else there is to see
    text: str
    #: the files that it wrote, in words
    written: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A known case, and how to reproduce it."""

    name: str
    summary: str
    #: folder below sample_models, of the program that is run
    sample: str
    #: runs the case, with progress on stderr; writes files into the folder that is given, which exists
    run: Callable[[Path, Options], Outcome]
    has_quick: bool = False
    #: the file in it to read first
    program: str = "train.py"


def sample_models() -> Path:
    """Return the folder of the sample programs: inside an installed package, else beside it in a checkout."""
    for folder in (_PACKAGE / "sample_models", _PACKAGE.parent / "sample_models"):
        if folder.is_dir():
            return folder
    raise click.ClickException(f"the sample programs are missing: no folder sample_models in {_PACKAGE}")


def scan(script: Path, argv: Iterable[str], stem: Path) -> Seen:
    """Scan the script in a process of its own, every step to its end, and return what was seen."""
    command = scan_command(script, argv, stem, "--steps", "all", "--every", "1")
    code = subprocess.run(command, check=False).returncode
    if code or not all(file.is_file() for file in _files(stem).values()):
        raise click.ClickException(f"{script} under observation ended with exit code {code}")
    return read_scan(stem)


def scan_command(script: Path, argv: Iterable[str], stem: Path, *options: str) -> list[str]:
    """Return the command that scans the script and writes what `read_scan` reads."""
    command = [sys.executable, "-m", "precdoctor", "scan", *options, "--fail-on", "never"]
    for option, file in _files(stem).items():
        file.unlink(missing_ok=True)  # nothing of an earlier run passes for this one's
        command += [option, str(file)]
    return [*command, str(script), *argv]


def read_scan(stem: Path) -> Seen:
    """Return what a scan wrote."""
    files = _files(stem)
    document: dict[str, Any] = json.loads(files["--json"].read_text(encoding="utf-8"))
    losses = evidence.load(files["--save"]).losses
    return Seen(report=document, losses=tuple(loss for _, loss in losses))


def _files(stem: Path) -> dict[str, Path]:
    """Return the files that a scan writes, by the option that names them."""
    suffixes = (("--json", ".json"), ("--html", ".html"), ("--save", ".evidence.json"))
    return {option: stem.with_name(stem.name + suffix) for option, suffix in suffixes}


def table(headers: Sequence[str], claims: Iterable[Claim], *, widths: Sequence[int] = (38, 24, 38)) -> str:
    """Return the claims as a table, a mark before each; ``widths`` are those of the other columns."""
    rows = [
        (
            click.style("✓", fg="green") if claim.holds else click.style("✗", fg="red", bold=True),
            claim.what,
            claim.expected,
            claim.seen,
        )
        for claim in claims
    ]
    return tabulate(rows, headers=headers, maxcolwidths=[None, *widths], disable_numparse=True)
