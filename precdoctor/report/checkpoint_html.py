"""What the HTML page shows of checkpoints: the content of templates/checkpoints.html."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from precdoctor.report import figures
from precdoctor.report.checkpoint_rows import (
    OUTLOOK_COLUMNS,
    columns,
    file_line,
    headroom_parts,
    kept,
    key,
    missing,
    outlooks,
    tensor_rows,
)
from precdoctor.report.report import Report

#: tensors on the page, those with findings first: some 400 bytes each
_MOST = 3000
_TEXTS = ("format", "remarks", "findings")


def content(report: Report) -> dict[str, Any] | None:
    """Return what the template needs; None for a report of a run."""
    contents = report.evidence.contents
    if contents is None:
        return None
    rows, names = tensor_rows(report), columns(contents)
    left = kept(rows, names)
    pair = len(contents.files) == 2
    svg = figures.headroom_bars(
        headroom_parts(report, rows),
        prefix="headroom",
        title="Headroom of the travel" if pair else "Headroom of the next update",
        what="travel of the elements that moved" if pair else "next update",
        plural="travels" if pair else "next updates",
        unit="tensors",
    )
    return {
        "outlooks": outlooks(contents),
        "outlook_columns": OUTLOOK_COLUMNS,
        "assumptions": contents.assumptions,
        "headroom": None if svg is None else Markup(svg),
        "headroom_text": (
            "How much larger the whole travel of each element that moved is than half an ulp of its weight, "
            "in bits. One step, from a value to the next, is 1 bit."
            if pair
            else "How much larger each next update is than the smallest one that its weight's format can "
            "store, in bits. Left of 0 round-to-nearest loses it."
        ),
        "key": key(contents),
        "columns": left,
        "places": [names.index(name) for name in left],
        "numbers": [name for name in names if name not in _TEXTS],
        "rows": rows[:_MOST],
        "total": len(rows),
        "missing": missing(contents),
        "shared": contents.shared,
        "files": [file_line(contents, index) for index in range(len(contents.files))],
    }
