"""What commands do with evidence: load it, show the report, write the files, choose the exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from precdoctor.evidence import Evidence
    from precdoctor.report import Report
    from precdoctor.trials import Trial

USAGE, SCRIPT_FAILED, INTERRUPTED = 2, 3, 130


def deliver(
    evidence: Evidence,
    *,
    err: bool,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    fail_on: str,
    trials: Sequence[Trial] = (),
    **files: Path | None,
) -> int:
    """Show the report, write it where asked, and return the exit code."""
    from precdoctor.report import Report, text
    from precdoctor.rules import SEVERITIES

    report = Report.of(evidence, select, ignore, trials=trials)
    click.echo(text.render(report), err=err)
    write_report(report, **files)
    if fail_on == "never":
        return 0
    grave = SEVERITIES[SEVERITIES.index("error" if fail_on == "error" else "warning") :]
    return int(any(finding.severity in grave for finding in report.findings))


def write_report(report: Report, *, html: Path | None, json: Path | None, sarif: Path | None) -> None:
    """Write the report to the files that were asked for."""
    if json is not None:
        write(json, "JSON report", report.to_json)
    if sarif is not None:
        write(sarif, "SARIF log", report.to_sarif)
    if html is not None:
        write(html, "report page", report.to_html)


def write(path: Path, what: str, put: Callable[[Path], object]) -> None:
    """Write a file and say so; what goes wrong becomes one line."""
    try:
        put(path)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None
    click.echo(f"precdoctor: {what} written to {os.path.relpath(path)}", err=True)


def load(path: Path) -> Evidence:
    """Return saved evidence; what is wrong with it becomes one line."""
    from precdoctor import evidence as records

    try:
        return records.load(path)
    except (records.EvidenceError, OSError) as error:
        raise click.ClickException(f"{path}: {error}") from None
