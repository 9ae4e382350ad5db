"""The report as terminal text: verdict, vital signs, findings, the worst parameters, what to do next."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

import click
from tabulate import tabulate

from precdoctor.report import checkpoint_text, trials_text, words
from precdoctor.report.cures import EDITABLE, can_be_tried, cures, tried
from precdoctor.report.quantizer_rows import COLUMNS as QUANTIZER_COLUMNS
from precdoctor.report.quantizer_rows import KEY as QUANTIZER_KEY
from precdoctor.report.quantizer_rows import quantizer_rows
from precdoctor.report.report import Report
from precdoctor.report.rows import Row, rows, worst_first
from precdoctor.report.terminal import COLOURS, clip, heading, showable, symbol, wrap
from precdoctor.rules.finding import Finding
from precdoctor.trials import Trial

#: parameters shown in the table; all of them are in the JSON and HTML reports
WORST = 10
#: from here on the table has room for the wide columns
WIDE = 88


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
        *(_finding(finding, report.trials, width) for finding in report.findings),
        trials_text.render(report.trials, width),
        _quantizers(report, width),
        _parameters(table, width),
        *checkpoint_text.render(report, width),
        _footer(report, table, width) if report.evidence.contents is None else _next(report),
    ]
    return showable("\n\n".join(part for part in parts if part) + "\n")


def _verdict(report: Report, width: int) -> str:
    sentence = wrap(report.diagnosis.summary, width, "  ").strip()
    return f"{symbol(report.verdict)} {click.style(sentence, bold=True)}"


def _vital_signs(report: Report, width: int) -> str:
    signs = report.diagnosis.vital_signs
    if not signs:
        return ""
    column = max(len(sign.name) for sign in signs)
    if column + 30 > width:  # no room for two columns: the text goes below the name
        lines = [f"  {symbol(sign.status)} {sign.name}\n" + wrap(sign.text, width, " " * 6) for sign in signs]
    else:
        indent = " " * (4 + column + 2)
        lines = [
            f"  {symbol(sign.status)} {sign.name:<{column}}  {wrap(sign.text, width, indent).lstrip()}"
            for sign in signs
        ]
    return "\n".join([heading("Vital signs"), *lines])


def _finding(finding: Finding, trials: Sequence[Trial], width: int) -> str:
    severity = click.style(finding.severity, fg=COLOURS[finding.severity], bold=True)
    lines = [f"{symbol(finding.severity)} {severity} {finding.rule} {click.style(finding.name, bold=True)}"]
    if finding.subjects:
        lines.append(wrap(words.subjects(finding.subjects), width, "  "))
    lines.append(wrap(finding.message, width, "  "))
    lines.extend(_locations(finding, width))
    lines.extend(_cures(finding, trials, width))
    return "\n".join(lines)


def _cures(finding: Finding, trials: Sequence[Trial], width: int) -> Iterator[str]:
    ordered = cures(finding, trials)
    if not ordered:
        return
    title = next((cure.status for cure in ordered if cure.trial is None), "")
    if any(cure.trial is not None for cure in ordered):
        title = "best first"
    elif any(cure.status != title for cure in ordered):  # some by hand, some not tried
        title = "not tried" if trials else "not tried yet"
    yield f"  cures, {title}:"
    for cure in ordered:
        note = "" if cure.status == title else f" ({cure.status})"
        said = f"{cure.label}{note}: {cure.prescription.why}"
        yield wrap(said, width, " " * 7, f"    {cure.rank}. ".ljust(7))


def _locations(finding: Finding, width: int) -> Iterator[str]:
    for location in finding.locations:
        label = location.role if location.place.certain else f"{location.role}, likely"
        where = words.place(location.place)
        code = words.printable(location.place.code)
        line = f"  {label}: {where}  {code}".rstrip()
        shown = clip(line, width) if len(where) + len(label) + 14 < width else line
        head, _, tail = shown.partition(where)
        yield head + click.style(where, fg="cyan") + tail if tail or where in shown else shown


def _quantizers(report: Report, width: int) -> str:
    """Return the table of quantized weights; empty where there are none, or no room for it."""
    found = quantizer_rows(report)
    if not found or width < WIDE:
        return ""
    shown = found[:WORST]
    cells = [row.cells for row in shown]
    taken = sum(
        max(len(c) + 2, *(len(cell[i]) for cell in cells)) + 2 for i, c in enumerate(QUANTIZER_COLUMNS)
    )
    names = [words.short_name(row.quantizer.parameter, width - taken) for row in shown]
    table = tabulate(
        [[name, *cell] for name, cell in zip(names, cells, strict=True)],
        headers=["weight", *QUANTIZER_COLUMNS],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left", *("left" if c == "gradient" else "right" for c in QUANTIZER_COLUMNS)],
    )
    total = words.count(len(found))
    title = "Quantized weights" if len(shown) == len(found) else f"{WORST} of {total} quantized weights"
    return "\n".join([heading(title), table, click.style(wrap(QUANTIZER_KEY, width, ""), dim=True)])


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
    return "\n".join([heading(title), table, click.style(wrap(key, width, ""), dim=True)])


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
    lines = [wrap("; ".join(facts) + ".", width, "")]
    if run.error:
        lines.append(wrap(f"The script failed: {run.error}", width, "  ", ""))
    lines.extend(wrap(limit, width, "  ", "Not seen: ") for limit in run.limits)
    return "\n".join(click.style(line, dim=True) for line in lines) + "\n\n" + _next(report)


def _next(report: Report) -> str:
    run = report.evidence.run
    if report.evidence.contents is not None:
        if any(finding.prescriptions for finding in report.findings):
            return f"Next: {click.style('precdoctor scan train.py', bold=True)} (the line that causes it)"
        return f"Next: {click.style('--html report.html', bold=True)} (every tensor on a page)"
    in_program = run.target == "Doctor"  # there is no command to run again
    cured = [trial.remedy for trial in tried(report.trials) if trial.outcome == "cured"]
    if report.findings and not in_program and not report.trials and can_be_tried(report):
        command, what = f"precdoctor treat {words.again(run)}", "try the cures"
    elif not in_program and EDITABLE.intersection(cured):
        command, what = f"precdoctor fix {words.again(run)}", "the cure as a diff"
    elif not in_program and cured:
        command, what = f"precdoctor explain {cured[0]}", "the cure, by hand"
    elif report.findings:
        command, what = f"precdoctor explain {report.findings[0].rule}", "what it means, why it hurts"
    elif in_program:
        command, what = 'report.to_html("report.html")', "every parameter on a page"
    else:
        command, what = "--html report.html", "every parameter on a page"
    return f"Next: {click.style(command, bold=True)} ({what})"
