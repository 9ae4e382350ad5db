"""The fever chart: EDQ of every parameter over the stretches of the run, as one small raster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from precdoctor.report import words
from precdoctor.report.figures.canvas import MUTED, WIDTH, new_figure, style, to_svg
from precdoctor.report.rows import Row

#: up to so many parameters each has a line with its name
_NAMED = 32
#: up to so many each has a line, in the model's order; more of them are sorted and share lines
_MOST_LINES = 120
_LABEL_CHARACTERS, _LABEL_PIXELS, _COUNT_PIXELS = 30, 216.0, 76.0

#: frozen, half, as intended: health recedes into the page, on white and on black; what is ill stands out
FEVER = LinearSegmentedColormap.from_list(
    "fever", ["#c03d1dff", "#e08a3cff", "#e3b765dd", "#8fb9a399", "#4f9a8a55"]
)


def fever_chart(rows: Sequence[Row], timeline: Sequence[int], *, prefix: str) -> str | None:
    """Draw EDQ (colour) of the parameters (lines) over the run. None without any."""
    seen = [
        row
        for row in rows
        if row.parameter.updates and any(edq is not None for edq in row.parameter.updates.timeline)
    ]
    if not seen or not timeline:
        return None
    values = _values(seen, len(timeline))
    shared = len(seen) > _MOST_LINES
    if shared:
        values = _shared(values)
    lines = len(values)
    pitch = 15.0 if len(seen) <= _NAMED else max(3.0, 360 / lines)
    top, bottom, height = 34.0, 40.0, pitch * lines
    total = top + height + bottom
    with style():
        figure = new_figure(total)
        label_pixels = _COUNT_PIXELS if shared else _LABEL_PIXELS
        left, width = label_pixels / WIDTH, (WIDTH - label_pixels - 16) / WIDTH
        axes = figure.add_axes((left, bottom / total, width, height / total))
        axes.imshow(
            np.ma.masked_invalid(values), cmap=FEVER, vmin=0, vmax=1, aspect="auto", interpolation="none",
            extent=(0, len(timeline), lines, 0),
        )  # fmt: skip
        for spine in axes.spines.values():
            spine.set_visible(False)
        if shared:
            axes.set_ylabel("parameters, worst first")
            counts = range(0, len(seen) + 1, _round_step(len(seen) / 5))
            axes.set_yticks([count * lines / len(seen) for count in counts], map(words.count, counts))
        else:
            named = range(0, lines, max(1, round(15 / pitch)))
            labels = [words.short_name(seen[index].parameter.name, _LABEL_CHARACTERS) for index in named]
            axes.set_yticks([index + 0.5 for index in named], labels, fontsize=10)
        ticks = range(len(timeline) - 1, -1, -max(1, round(len(timeline) / 6)))
        axes.set_xticks([t + 0.5 for t in ticks], [words.count(timeline[t]) for t in ticks])
        axes.set_xlabel("optimizer step")
        axes.tick_params(length=0)
        _key(figure, total)
        frozen = sum(1 for row in seen if row.edq is not None and row.edq < 0.1)
        return to_svg(
            figure, prefix=prefix, title="EDQ of the parameters over the run",
            description=f"{words.count(len(seen))} parameters over {words.count(timeline[-1])} steps; "
            f"{words.count(frozen)} have an EDQ below 0.1. The table of parameters has the numbers.",
        )  # fmt: skip


def _values(seen: Sequence[Row], stretches: int) -> NDArray[np.float64]:
    values = np.full((len(seen), stretches), np.nan)
    for index, row in enumerate(seen):
        assert row.parameter.updates is not None
        known = [np.nan if edq is None else edq for edq in row.parameter.updates.timeline[:stretches]]
        values[index, : len(known)] = known
    return values.clip(0, 1)


def _shared(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return fewer lines, worst first, each the mean of neighbours that are alike once sorted."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0)
    order = np.argsort(filled.sum(axis=1) / known.sum(axis=1), kind="stable")
    starts = np.linspace(0, len(values), _MOST_LINES, endpoint=False).astype(int)
    sums = np.add.reduceat(filled[order], starts, axis=0)
    counts = np.add.reduceat(known[order].astype(int), starts, axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _round_step(least: float) -> int:
    """Return the smallest of 10, 20, 50, 100, 200, ... that is not below ``least``."""
    power = 10
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10


def _key(figure: Figure, total: float) -> None:
    bar, right = 110 / WIDTH, 1 - 112 / WIDTH
    key = figure.add_axes((right - bar, 1 - 20 / total, bar, 8 / total))
    key.imshow(np.linspace(0, 1, 40)[None], cmap=FEVER, aspect="auto", interpolation="none")
    key.set_xticks([])
    key.set_yticks([])
    for spine in key.spines.values():
        spine.set_visible(False)
    for x, align, text in ((-0.06, "right", "EDQ 0: frozen"), (1.06, "left", "1: as intended")):
        key.text(x, 0.45, text, ha=align, va="center", color=MUTED, fontsize=10.5, transform=key.transAxes)
