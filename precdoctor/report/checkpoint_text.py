"""The parts of the terminal report that speak of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import click
from tabulate import tabulate

from precdoctor.evidence import Contents
from precdoctor.report import words
from precdoctor.report.checkpoint_rows import (
    OUTLOOK_COLUMNS,
    TensorRow,
    columns,
    file_line,
    kept,
    key,
    missing,
    outlooks,
    tensor_rows,
)
from precdoctor.report.report import Report
from precdoctor.report.terminal import clip, heading, wrap
from precdoctor.rules.wording import several

#: tensors shown; all of them are in the JSON and HTML reports
MOST = 20
#: columns that are left out where the terminal is narrow, the first first
_DISPENSABLE = ("elements", "largest", "remarks")

#: room that names have before columns are left out
_NAME = 24


def render(report: Report, width: int) -> list[str]:
    """Return the sections: the prognosis, the tensors, the files."""
    contents = report.evidence.contents
    if contents is None:
        return []
    return [_outlook(contents, width), _tensors(report, contents, width), _files(report, contents, width)]


def _outlook(contents: Contents, width: int) -> str:
    found = outlooks(contents)
    if not found:
        return ""
    table = tabulate(
        [outlook.cells for outlook in found],
        headers=OUTLOOK_COLUMNS,
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left"] + ["right"] * (len(OUTLOOK_COLUMNS) - 1),
    )
    key = "lost: share of the updates other than 0. unchanged: share of all elements. headroom: bits, median."
    notes = [wrap(line, width, "") for line in (*contents.assumptions, key)]
    return "\n".join([heading("The next update"), table, *(click.style(note, dim=True) for note in notes)])


def _tensors(report: Report, contents: Contents, width: int) -> str:
    rows = [row for row in tensor_rows(report) if row.tensor.kind != "state" or row.severity]
    if not rows:
        return ""
    shown = rows[:MOST]
    names = list(columns(contents))
    left = kept(shown, names)
    longest = min(max(len(row.tensor.name) for row in shown), _NAME)
    for name in _DISPENSABLE:
        if _taken(shown, names, left) + longest > width and name in left:
            left.remove(name)
    cells = [[row.cells[names.index(name)] for name in left] for row in shown]
    room = max(width - _taken(shown, names, left), 12)
    table = tabulate(
        [[words.short_name(row.tensor.name, room), *line] for row, line in zip(shown, cells, strict=True)],
        headers=["tensor", *left],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left", *("left" if c in ("format", "remarks", "findings") else "right" for c in left)],
    )
    title = "Tensors" if len(shown) == len(rows) else f"{MOST} of {words.count(len(rows))} tensors"
    note = click.style(wrap(key(contents), width, ""), dim=True)
    return "\n".join([heading(title), *(clip(line, width) for line in table.splitlines()), note])


def _taken(shown: Sequence[TensorRow], names: Sequence[str], left: Sequence[str]) -> int:
    """Return the width of the columns; tabulate keeps two spaces between them, and beside wide headers."""
    widths = (max(len(c) + 2, *(len(row.cells[names.index(c)]) for row in shown)) + 2 for c in left)
    return sum(widths)


def _files(report: Report, contents: Contents, width: int) -> str:
    lines = [wrap(file_line(contents, index), width, "  ", "") for index in range(len(contents.files))]
    for path, names in missing(contents):
        lines.append(wrap(f"Only in {path}: {several(names)}", width, "  ", ""))
    for shared in contents.shared:
        how = "One tensor" if shared.by == "storage" else "Equal to the last bit"
        lines.append(wrap(f"{how}: {' = '.join(shared.names)}", width, "  ", ""))
    run = report.evidence.run
    lines.append(f"Read in {words.duration(run.seconds)}.")
    lines += [wrap(limit, width, "  ", "Not seen: ") for limit in run.limits]
    return "\n".join(click.style(line, dim=True) for line in lines)
