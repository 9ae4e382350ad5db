"""The report as one HTML page that needs nothing but itself: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from precdoctor.evidence import Evidence, Example, Place
from precdoctor.report import checkpoint_html, figures, words
from precdoctor.report.checkpoint_rows import file_line
from precdoctor.report.cures import Cure, compared_with, cures, reason, tried, verdict
from precdoctor.report.quantizer_rows import COLUMNS as QUANTIZER_COLUMNS
from precdoctor.report.quantizer_rows import KEY as QUANTIZER_KEY
from precdoctor.report.quantizer_rows import quantizer_rows
from precdoctor.report.report import Report
from precdoctor.report.rows import Row, finite, rank, rows, worst_first
from precdoctor.rules.finding import Finding, Location
from precdoctor.rules.wording import number
from precdoctor.trials import Trial

_TEMPLATES = Path(__file__).parent / "templates"
#: lines of source shown before and after the one that matters
_AROUND = 4
#: number lines drawn at most, so that a page with hundreds of findings stays quick
_MOST_NUMBER_LINES = 24
#: rows of the table that are there without JavaScript
_ROWS_WITHOUT_SCRIPT = 40
#: quantized weights shown
_MOST_QUANTIZERS = 100


def render(report: Report) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        edq=words.edq,
        interval=lambda row: words.interval(row.edq_low, row.edq_high),
        percent=words.percent,
        bits=words.bits,
        count=words.count,
        printable=words.printable,
        loss=words.loss,
        difference=lambda trial: words.difference(trial.loss_difference, trial.loss_difference_error),
        ratio=words.ratio,
        byte_count=words.byte_count,
        reason=reason,
    )
    name = "report.js" if report.evidence.contents is None else "tensors.js"
    script = (_TEMPLATES / name).read_text(encoding="utf-8")
    return environment.get_template("report.html").render(
        **_content(report),
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # the page's own script and no other may run, whatever a parameter is called
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _content(report: Report) -> dict[str, Any]:
    evidence, table = report.evidence, rows(report)
    ordered = worst_first(table)
    return {
        "run": evidence.run,
        "command": words.command(evidence.run),
        "diagnosis": report.diagnosis,
        "findings": _findings(report),
        "cures": _cures(report.trials),
        "headroom": _svg(figures.headroom_histogram(table, prefix="headroom")),
        "fever": _svg(figures.fever_chart(table, evidence.timeline, prefix="fever")),
        "losses": _svg(figures.loss_curve(evidence.losses, prefix="losses")),
        "quantizers": quantizer_rows(report)[:_MOST_QUANTIZERS],
        "quantizers_total": len(quantizer_rows(report)),
        "quantizer_columns": QUANTIZER_COLUMNS,
        "quantizer_key": QUANTIZER_KEY,
        "checkpoints": checkpoint_html.content(report),
        "rows": ordered[:_ROWS_WITHOUT_SCRIPT],
        "total": len(table),
        "ill_total": sum(1 for row in table if row.ill),
        "data": [_compact(row) for row in ordered],
        "facts": _facts(evidence),
    }


def _svg(text: str | None) -> Markup | None:
    return None if text is None else Markup(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A line of a source excerpt."""

    number: int
    text: str
    here: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A location of a finding with the lines around it."""

    location: Location
    where: str
    lines: tuple[_Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """A finding with what the page adds to it."""

    finding: Finding
    sources: tuple[_Source, ...]
    cures: tuple[Cure, ...]
    measured: tuple[tuple[str, str], ...]
    #: the parameter whose element the number line shows
    example: str | None
    line: figures.NumberLine | None
    picture: Markup | None


def _findings(report: Report) -> list[_Shown]:
    examples = {
        parameter.name: (parameter.updates.example, parameter.format)
        for parameter in report.evidence.parameters
        if parameter.updates is not None and parameter.updates.example is not None
    }
    shown = []
    for index, finding in enumerate(report.findings):
        name, line = _typical(finding, examples), None
        if name is not None and index < _MOST_NUMBER_LINES:
            line = figures.number_line(*examples[name], prefix=f"line-{index}")
        shown.append(
            _Shown(
                finding=finding,
                sources=tuple(_source(report.evidence, location) for location in finding.locations),
                cures=cures(finding, report.trials),
                measured=tuple(
                    (key.replace("_", " "), _measured(value)) for key, value in finding.measured.items()
                ),
                example=name,
                line=line,
                picture=_svg(None if line is None else line.svg),
            )
        )
    return shown


def _cures(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Return what the page says of the trials; None without any."""
    if not tried(trials):
        return None
    return {
        "verdict": verdict(trials),
        "trials": [*compared_with(trials), *tried(trials)],
        "losses": _svg(figures.trial_losses(trials, prefix="trial-losses")),
        "smoothing": figures.smoothing(trials),
        "edq": _svg(figures.edq_bars(trials, prefix="trial-edq")),
    }


def _typical(finding: Finding, examples: dict[str, tuple[Example, str]]) -> str | None:
    """Return the parameter whose example is the one that the message speaks of.

    None for findings that rest on something else than an update beside half an ulp.
    """
    spoken_of = finding.measured.get("intended_update")
    if not isinstance(spoken_of, float):
        return None
    named = (subject.name for subject in finding.subjects if subject.kind == "parameter")
    return min(
        (name for name in named if name in examples),
        key=lambda name: abs(abs(examples[name][0].intended) - spoken_of),
        default=None,
    )


def _measured(value: float | int | str | None) -> str:
    if isinstance(value, float):
        return number(value)
    return "-" if value is None else str(value)


def _source(evidence: Evidence, location: Location) -> _Source:
    at = location.place
    return _Source(location=location, where=words.place(at), lines=_excerpt(evidence, at))


def _excerpt(evidence: Evidence, at: Place) -> tuple[_Line, ...]:
    for file, first, lines in evidence.excerpts:
        if file == at.file and first <= at.line < first + len(lines):
            start = max(at.line - _AROUND, first)
            end = min(at.line + _AROUND, first + len(lines) - 1)
            return tuple(
                _Line(number=n, text=lines[n - first].rstrip(), here=n == at.line)
                for n in range(start, end + 1)
            )
    return (_Line(number=at.line, text=at.code, here=True),) if at.code else ()


def _compact(row: Row) -> list[Any]:
    """Return a row as the script reads it (COLUMNS in report.js), in few characters."""
    parameter = row.parameter
    figures = (row.edq, row.edq_low, row.edq_high, row.lost_share, *row.headroom_bits)
    return [
        words.printable(parameter.name),
        parameter.format,
        words.shape(parameter.shape),
        parameter.numel,
        *(_rounded(figure) for figure in figures),
        " ".join(row.rules),
        rank(row.severity),
    ]


def _rounded(value: float | None) -> float | None:
    known = finite(value)
    return None if known is None else float(f"{known:.4g}")


def _facts(evidence: Evidence) -> list[tuple[str, str]]:
    run = evidence.run
    if evidence.contents is not None:
        return [(name, words.printable(value)) for name, value in _file_facts(evidence) if value]
    elements = sum(parameter.numel for parameter in evidence.parameters)
    watched = sum(parameter.watched for parameter in evidence.parameters)
    facts = [
        ("Command", words.command(run)),
        ("Started", run.started),
        ("Length", words.steps(run)),
        ("Ended", f"{run.ended}, exit code {run.exit_code}" + (f": {run.error}" if run.error else "")),
        ("Optimizers", "; ".join(_optimizers(evidence))),
        ("Parameters", f"{words.count(len(evidence.parameters))}, {words.count(elements)} elements"),
        ("Watched", f"{words.count(watched)} elements"),
        ("Time", f"{words.duration(run.seconds)}, {words.duration(run.observing_seconds)} of it observing"),
        ("torch", run.torch),
        ("Python", run.python),
        ("Device", run.device),
    ]
    return [(name, words.printable(value)) for name, value in facts if value]


def _file_facts(evidence: Evidence) -> list[tuple[str, str]]:
    run, contents = evidence.run, evidence.contents
    assert contents is not None
    names = ("First file", "Second file") if len(contents.files) == 2 else ("File",)
    return [
        *((name, file_line(contents, index)) for index, name in enumerate(names)),
        ("Command", words.command(run)),
        ("Started", run.started),
        ("Time", words.duration(run.seconds)),
        ("torch", run.torch),
        ("Python", run.python),
    ]


def _optimizers(evidence: Evidence) -> list[str]:
    texts = []
    for optimizer in evidence.optimizers:
        rates = sorted({group.lr_last for group in optimizer.groups if group.lr_last is not None})
        learning_rates = ", ".join(number(rate) for rate in rates)
        texts.append(optimizer.type + (f" (lr {learning_rates})" if rates else ""))
    return texts
