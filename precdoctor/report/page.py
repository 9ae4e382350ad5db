"""A page in the report's look, for what is not a report: self-contained, without script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from precdoctor.report import words

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: Path, *, title: str, command: str, **content: Any) -> str:
    """Return the page of a template that extends ``page.html``; everything is escaped but `Markup`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(printable=words.printable, count=words.count, percent=words.percent)
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    return environment.get_template(template.name).render(
        title=title, command=command, style=Markup(style), **content
    )
