"""A comparison as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from precdoctor.comparison import figures
from precdoctor.comparison.result import Comparison, FormatResult, Layer
from precdoctor.comparison.text import COLUMNS, decibels, format_rows, headline, key
from precdoctor.comparison.verdict import status
from precdoctor.report import page, words
from precdoctor.rules.wording import size

_TEMPLATE = Path(__file__).parent / "templates" / "comparison.html"
#: layers listed of each format without opening the rest, and at most
_SHOWN, _MOST = 12, 400


def render(comparison: Comparison) -> str:
    """Return the page."""
    return page.render(
        _TEMPLATE,
        title=f"Comparison of {comparison.name}",
        command=f"precdoctor compare {comparison.name}",
        comparison=comparison,
        headline=headline(comparison),
        tone=_tone(comparison),
        columns=COLUMNS,
        rows=format_rows(comparison),
        key=key(comparison),
        differences=_svg(figures.differences(comparison, prefix="differences")),
        curves=_svg(figures.along_layers(comparison.formats, prefix="layers")),
        sections=[_section(result) for result in comparison.formats[1:]],
    )


def _tone(comparison: Comparison) -> str:
    """Return the class of the verdict."""
    found = {status(result, comparison.reference.loss) for result in comparison.formats[1:]}
    computed = {
        status(result, comparison.reference.loss)
        for result in comparison.formats
        if result.kind == "computed"
    }
    judged = computed or found
    if judged & {"broken", "differs"}:
        return "ill"
    return "unknown" if "open" in judged else "ok"


def _svg(text: str | None) -> Markup | None:
    return None if text is None else Markup(text)


def _section(result: FormatResult) -> dict[str, Any]:
    ordered = sorted(result.layers, key=lambda x: (not x.overflows, x.sqnr_db))[:_MOST]
    found = result.sensitivity
    kept: list[tuple[str, str, str]] = []
    if found is not None:
        kept = [("(none)", words.difference(found.before.mean, found.before.error), "")]
        together = found.together
        each = [*found.alone, *([together] if together is not None and len(together.names) > 1 else [])]
        kept += [
            (
                ", ".join(one.names),
                words.difference(one.difference.mean, one.difference.error),
                f"+{size(one.extra_bytes)}",
            )
            for one in each
        ]
    return {
        "name": result.stored,
        "departs": None if result.departs is None else _cells(result.departs),
        "layers": [_cells(layer) for layer in ordered[:_SHOWN]],
        "more": [_cells(layer) for layer in ordered[_SHOWN:]],
        "total": len(result.layers),
        "kept": kept,
        "tried": found,
    }


def _cells(layer: Layer) -> tuple[str, str, str]:
    return layer.name, decibels(layer.sqnr_db), decibels(layer.expected_db)
