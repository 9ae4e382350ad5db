"""The report's main picture: how many bits of headroom the updates of all parameters have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from precdoctor.evidence import Histogram
from precdoctor.report import words
from precdoctor.report.figures.canvas import CALM, ILL, INK, MUTED, new_figure, style, to_svg
from precdoctor.report.rows import Row

_WIDTH_BITS = 0.5
#: bits from 0 to the ends of the axis, at least and at most; what lies beyond is in the last bin
_NEAR, _FAR = 4.0, 26.0


def headroom_histogram(rows: Sequence[Row], *, prefix: str) -> str | None:
    """Draw the headroom of all updates; every parameter counts the same, however large. None without any."""
    parts = [(row.ill, row.parameter.updates.headroom_bits) for row in rows if row.parameter.updates]
    return headroom_bars(parts, prefix=prefix)


def headroom_bars(
    parts: Sequence[tuple[bool, Histogram]],
    *,
    prefix: str,
    title: str = "Headroom of the updates",
    what: str = "intended update",
    plural: str = "updates",
    unit: str = "parameters",
) -> str | None:
    """Draw the headroom of what moves weights, a histogram per weight with whether a finding names it."""
    seen = [(ill, histogram) for ill, histogram in parts if histogram.total > 0]
    if not seen:
        return None
    edges = np.arange(-_FAR, _FAR + _WIDTH_BITS, _WIDTH_BITS)
    ill, others = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for is_ill, histogram in seen:
        _add(ill if is_ill else others, histogram)
    total = ill + others
    below = float(total[edges[:-1] < 0].sum() / total.sum())
    median_below = sum(1 for _, histogram in seen if (histogram.quantile(0.5) or 0) < 0)
    description = (
        f"{words.percent(below)} of the {plural} lie below 0 bits and are lost to round-to-nearest, every "
        f"{unit.removesuffix('s')} counting the same. So does the median of {words.count(median_below)} of "
        f"{words.count(len(seen))} {unit}."
    )
    with style():
        figure = new_figure(250)
        axes = figure.add_axes((0.075, 0.2, 0.91, 0.66))
        filled = np.flatnonzero(total)
        low = min(float(edges[filled[0]]) - 1, -_NEAR)
        high = max(float(edges[filled[-1] + 1]) + 1, _NEAR)
        axes.axvspan(low, 0, color=ILL, alpha=0.08, linewidth=0)
        axes.axvline(0, color=INK, linewidth=1.2)
        for counts, base, colour, label in (
            (others, np.zeros_like(ill), CALM, f"other {unit}"),
            (ill, others, ILL, f"{unit} with a finding"),
        ):
            if counts.any():
                axes.bar(
                    edges[:-1], counts, _WIDTH_BITS * 0.9, base,
                    align="edge", color=colour, linewidth=0, label=label,
                )  # fmt: skip
        axes.set_xlim(low, high)
        axes.set_xlabel(f"headroom in bits: log2({what} / half an ulp of the weight)")
        axes.set_ylabel(unit)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
        axes.tick_params(length=3)
        for text, colour, side, align in (
            ("lost to rounding", ILL, -8, "right"),
            ("survives", MUTED, 8, "left"),
        ):
            axes.annotate(
                text, (0, 1.02), (side, 0), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                ha=align, va="bottom", color=colour, annotation_clip=False,
            )  # fmt: skip
        axes.legend(loc="upper right", frameon=False, labelcolor=MUTED, handlelength=1, handleheight=1)
        return to_svg(figure, prefix=prefix, title=title, description=description)


def _add(counts: NDArray[np.float64], histogram: Histogram) -> None:
    """Add the histogram, scaled to 1, to half-bit bins; what lies outside goes to the outermost."""
    share = np.asarray(histogram.counts) / histogram.total
    centres = histogram.low + histogram.width * (np.arange(len(share)) + 0.5)
    bins = np.floor((centres + _FAR) / _WIDTH_BITS).astype(int).clip(0, len(counts) - 1)
    np.add.at(counts, bins, share)
