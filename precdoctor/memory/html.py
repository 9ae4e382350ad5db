"""What a recipe holds, as one HTML page."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from precdoctor.memory import figures, text
from precdoctor.memory.result import MemoryReport
from precdoctor.report import page

_TEMPLATE = Path(__file__).parent / "templates" / "memory.html"


def render(report: MemoryReport) -> str:
    """Return the page."""
    tables = (
        ("What it holds", "held", text.CHOSEN_COLUMNS, text.chosen_rows(report)),
        (
            "Three numbers that are easily confused",
            "confused",
            ("which", "bytes", "what it is"),
            text.confused_rows(report),
        ),
        ("Every recipe, estimated", "recipes", text.RECIPE_COLUMNS, text.recipe_rows(report)),
        ("The weights alone", "formats", text.FORMAT_COLUMNS, text.format_rows(report)),
    )
    return page.render(
        _TEMPLATE,
        title=f"Memory of {report.name}",
        command=f"precdoctor memory {report.name} --recipe {report.chosen.recipe}",
        report=report,
        conclusion=text.conclusion(report),
        setting=f"{report.chosen.what}; {text.setting(report)}.",
        activations=text.activations(report),
        checks=text.checks(report),
        agrees=all(check.holds for check in report.checks),
        picture=Markup(figures.stacked(report, prefix="recipes")),
        tables=tables,
    )
