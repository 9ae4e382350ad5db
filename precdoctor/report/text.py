"""The report as terminal text: verdict, vital signs, findings, the worst parameters, what to do next."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator

import click
from tabulate import tabulate

from precdoctor.report import words
from precdoctor.report.report import Report
from precdoctor.report.rows import Row, rows, worst_first
from precdoctor.rules.finding import Finding

#: parameters shown in the table; all of them are in the JSON and HTML reports
WORST = 10
#: from here on the table has room for the wide columns
WIDE = 88

SYMBOLS = {"ok": "✓", "healthy": "✓", "ill": "✗", "unknown": "?", "error": "✗", "warning": "!", "note": "·"}
COLOURS = {
    "ok": "green",
    "healthy": "green",
    "ill": "red",
    "unknown": "yellow",
    "error": "red",
    "warning": "yellow",
    "note": "cyan",
}
ASCII = str.maketrans(
    {"✓": "+", "✗": "x", "·": "-", "×": "x", "±": "+/-", "…": "~", "−": "-", "≥": ">=", "≤": "<="}
)


def render(report: Report) -> str:
    """Return the report with ANSI colours (`click.echo` strips them off a pipe), ready to print.

    It is as wide as the terminal, within 60 to 120 columns, and plain ASCII where stdout or stderr
    could not show more.
    """
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    table = rows(report)
    parts = [
        _verdict(report, width),
        _vital_signs(report, width),
        *(_finding(finding, width) for finding in report.findings),
        _parameters(table, width),
        _footer(report, table, width),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return text if _can_show(text) else text.translate(ASCII).encode("ascii", "backslashreplace").decode()


def _can_show(text: str) -> bool:
    for stream in (sys.stdout, sys.stderr):
        try:
            text.encode(getattr(stream, "encoding", None) or "utf-8")
        except (UnicodeEncodeError, LookupError):
            return False
    return True


def _symbol(status: str) -> str:
    return click.style(SYMBOLS[status], fg=COLOURS[status], bold=True)


def _wrap(text: str, width: int, indent: str, first: str | None = None) -> str:
    start = indent if first is None else first
    return textwrap.fill(
        words.printable(text), width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
    )


def _verdict(report: Report, width: int) -> str:
    sentence = _wrap(report.diagnosis.summary, width, "  ").strip()
    return f"{_symbol(report.verdict)} {click.style(sentence, bold=True)}"


def _vital_signs(report: Report, width: int) -> str:
    signs = report.diagnosis.vital_signs
    if not signs:
        return ""
    column = max(len(sign.name) for sign in signs)
    if column + 30 > width:  # no room for two columns: the text goes below the name
        lines = [
            f"  {_symbol(sign.status)} {sign.name}\n" + _wrap(sign.text, width, " " * 6) for sign in signs
        ]
    else:
        indent = " " * (4 + column + 2)
        lines = [
            f"  {_symbol(sign.status)} {sign.name:<{column}}  {_wrap(sign.text, width, indent).lstrip()}"
            for sign in signs
        ]
    return "\n".join([_heading("Vital signs"), *lines])


def _heading(text: str) -> str:
    return click.style(text, bold=True)


def _finding(finding: Finding, width: int) -> str:
    severity = click.style(finding.severity, fg=COLOURS[finding.severity], bold=True)
    lines = [f"{_symbol(finding.severity)} {severity} {finding.rule} {click.style(finding.name, bold=True)}"]
    if finding.subjects:
        lines.append(_wrap(words.subjects(finding.subjects), width, "  "))
    lines.append(_wrap(finding.message, width, "  "))
    lines.extend(_locations(finding, width))
    if finding.prescriptions:
        lines.append("  cures, not tried yet:")
        for cure in sorted(finding.prescriptions, key=lambda cure: cure.rank):
            lines.append(_wrap(f"{cure.remedy}: {cure.why}", width, " " * 7, f"    {cure.rank}. "))
    return "\n".join(lines)


def _locations(finding: Finding, width: int) -> Iterator[str]:
    for location in finding.locations:
        label = location.role if location.place.certain else f"{location.role}, likely"
        where = words.place(location.place)
        code = words.printable(location.place.code)
        line = f"  {label}: {where}  {code}".rstrip()
        shown = _clip(line, width) if len(where) + len(label) + 14 < width else line
        head, _, tail = shown.partition(where)
        yield head + click.style(where, fg="cyan") + tail if tail or where in shown else shown


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _parameters(of: tuple[Row, ...], width: int) -> str:
    if not of:
        return ""
    shown = worst_first(of)[:WORST]
    columns = ["format", "EDQ", "lost", "headroom"]
    cells = [
        [
            row.parameter.format,
            words.edq(row.edq),
            words.percent(row.lost_share),
            words.bits(row.headroom_bits[1]),
        ]
        for row in shown
    ]
    if width >= WIDE:
        columns = ["format", "elements", "EDQ", "interval", "lost", "headroom", "findings"]
        cells = [
            [
                cell[0],
                words.count(row.parameter.numel),
                cell[1],
                words.interval(row.edq_low, row.edq_high),
                *cell[2:],
                " ".join(row.rules),
            ]
            for cell, row in zip(cells, shown, strict=True)
        ]
    # tabulate keeps two spaces between columns, and two more beside a header that is the widest
    taken = sum(max(len(c) + 2, *(len(cell[i]) for cell in cells)) + 2 for i, c in enumerate(columns))
    names = [[words.short_name(row.parameter.name, width - taken)] for row in shown]
    table = tabulate(
        [name + cell for name, cell in zip(names, cells, strict=True)],
        headers=["parameter", *columns],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left", "left"] + ["left" if c == "findings" else "right" for c in columns[1:]],
    )
    title = (
        "Parameters" if len(shown) == len(of) else f"The worst {WORST} of {words.count(len(of))} parameters"
    )
    key = "EDQ: 1 = descent as intended, 0 = frozen.  headroom: bits, median; below 0 the update is lost."
    return "\n".join([_heading(title), table, click.style(_wrap(key, width, ""), dim=True)])


def _footer(report: Report, of: tuple[Row, ...], width: int) -> str:
    run = report.evidence.run
    facts = [f"{words.command(run)}: {words.steps(run)}"]
    if of:
        elements = sum(row.parameter.numel for row in of)
        facts.append(f"{words.count(len(of))} parameters, {words.count(elements)} elements")
    if run.torch:
        facts.append(f"torch {run.torch} on {run.device}" if run.device else f"torch {run.torch}")
    if run.seconds:
        facts.append(
            f"{words.duration(run.seconds)}, {words.duration(run.observing_seconds)} of it observing"
        )
    lines = [_wrap("; ".join(facts) + ".", width, "")]
    if run.error:
        lines.append(_wrap(f"The script failed: {run.error}", width, "  ", ""))
    lines.extend(_wrap(limit, width, "  ", "Not seen: ") for limit in run.limits)
    return "\n".join(click.style(line, dim=True) for line in lines) + "\n\n" + _next(report)


def _next(report: Report) -> str:
    if report.findings:
        first = report.findings[0]
        command = click.style(f"precdoctor explain {first.rule}", bold=True)
        return f"Next: {command} (what it means, why it hurts)"
    page = 'report.to_html("report.html")' if report.evidence.run.target == "Doctor" else "--html report.html"
    return f"Next: {click.style(page, bold=True)} (every parameter on a page)"
