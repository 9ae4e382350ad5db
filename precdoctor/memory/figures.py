"""A stacked bar of what each recipe holds."""

from __future__ import annotations

from precdoctor.memory.result import CATEGORIES, MemoryReport
from precdoctor.report.figures.canvas import (
    CALM,
    ILL,
    INK,
    LINE,
    MUTED,
    NOTE,
    OK,
    WARN,
    new_figure,
    style,
    to_svg,
)
from precdoctor.rules.wording import size

_COLOURS = dict(zip(CATEGORIES, (NOTE, INK, OK, ILL, WARN, MUTED, LINE, CALM), strict=True))


def stacked(report: MemoryReport, *, prefix: str) -> str:
    """Draw one bar per recipe, in its parts."""
    rows = report.recipes
    shown = [name for name in CATEGORIES if any(one.bytes[name] for one in rows)]
    total = max(one.total_bytes for one in rows)
    unit, scale = next(
        (u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0)) if total >= s or s == 1
    )
    height = 92 + 25 * len(rows)
    with style():
        figure = new_figure(height)
        axes = figure.add_axes((0.16, 42 / height, 0.73, 25 * len(rows) / height))
        left = [0.0] * len(rows)
        for name in shown:
            widths = [one.bytes[name] / scale for one in rows]
            axes.barh(range(len(rows)), widths, 0.68, left=left, color=_COLOURS[name], label=name)
            left = [before + width for before, width in zip(left, widths, strict=True)]
        for place, one in enumerate(rows):
            axes.annotate(
                size(one.total_bytes), (left[place], place), (6, 0), textcoords="offset points", va="center"
            )
        names = [f"{'▸ ' if one.recipe == report.chosen.recipe else ''}{one.recipe}" for one in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"held at the end of the forward pass, {unit}")
        axes.tick_params(length=3)
        figure.legend(
            loc="upper left", ncol=4, frameon=False, handlelength=1.0, columnspacing=1.4, fontsize=10.5
        )
        told = "; ".join(f"{one.recipe} {size(one.total_bytes)}" for one in rows)
        return to_svg(figure, prefix=prefix, title="Memory by recipe", description=told)
