"""Pictures of a comparison: each format's difference with its interval, and the SQNR along the layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precdoctor.comparison.result import Comparison, FormatResult
from precdoctor.comparison.verdict import status
from precdoctor.report import words
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

_COLOURS = {"agrees": OK, "small": NOTE, "differs": WARN, "broken": ILL, "open": MUTED}
_CURVES = (NOTE, OK, WARN, ILL, CALM, INK, MUTED)
_STYLES = ("-", "--", "-.", ":")
#: points drawn of a curve at most
_POINTS = 400


def differences(comparison: Comparison, *, prefix: str) -> str | None:
    """Draw the difference of each format to float32 with its 95 % interval; None without any."""
    drawn = [r for r in comparison.formats if r.difference is not None and math.isfinite(r.difference.mean)]
    if not drawn:
        return None
    with style():
        figure = new_figure(58 + 26 * len(drawn))
        height = 58 + 26 * len(drawn)
        axes = figure.add_axes((0.2, 44 / height, 0.77, 26 * len(drawn) / height))
        axes.axvline(0, color=LINE, linewidth=1)
        for place, result in enumerate(drawn):
            difference = result.difference
            assert difference is not None
            colour = _COLOURS[status(result, comparison.reference.loss)]
            if math.isfinite(difference.low):
                axes.plot([difference.low, difference.high], [place] * 2, color=colour, linewidth=2.5)
            axes.plot([difference.mean], [place], "o", color=colour, markersize=6)
        axes.set_yticks(range(len(drawn)), [result.stored for result in drawn])
        axes.set_ylim(len(drawn) - 0.5, -0.5)
        axes.set_xlabel("loss, difference to float32")
        axes.tick_params(length=3)
        told = "; ".join(
            f"{r.stored} {words.difference(r.difference.mean, r.difference.error)}"
            for r in drawn
            if r.difference is not None
        )
        return to_svg(figure, prefix=prefix, title="Difference of the loss to float32", description=told)


def along_layers(formats: Sequence[FormatResult], *, prefix: str) -> str | None:
    """Draw the SQNR of the layers in the order in which they run; None without any."""
    drawn = [result for result in formats if any(math.isfinite(x.sqnr_db) for x in result.layers)]
    if not drawn:
        return None
    with style():
        figure = new_figure(270)
        axes = figure.add_axes((0.075, 0.17, 0.91, 0.71))
        for index, result in enumerate(drawn):
            step = max(1, math.ceil(len(result.layers) / _POINTS))
            points = [
                (place, layer.sqnr_db)
                for place, layer in enumerate(result.layers)
                if place % step == 0 and math.isfinite(layer.sqnr_db)
            ]
            axes.plot(
                [place for place, _ in points],
                [value for _, value in points],
                _STYLES[index % len(_STYLES)],
                color=_CURVES[index % len(_CURVES)],
                linewidth=1.5,
                label=result.stored,
            )
        axes.set_xlabel("modules, in the order in which they end")
        axes.set_ylabel("SQNR, dB")
        axes.tick_params(length=3)
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(drawn), frameon=False, handlelength=2.2
        )
        lows = "; ".join(
            f"{r.stored} from {min(x.sqnr_db for x in r.layers if math.isfinite(x.sqnr_db)):.0f} dB"
            for r in drawn
        )
        return to_svg(figure, prefix=prefix, title="SQNR along the layers", description=lows)
