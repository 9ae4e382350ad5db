"""The loss over the run; values that are not finite are marked, never dropped silently."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precdoctor.report import words
from precdoctor.report.figures.canvas import CALM, ILL, new_figure, style, to_svg

#: the curve has at most twice so many points: the smallest and the largest of each bucket
_BUCKETS = 400


def loss_curve(losses: Sequence[tuple[int, float]], *, prefix: str) -> str | None:
    """Draw the loss at the recorded backward passes; None when fewer than two are known."""
    if len(losses) < 2:
        return None
    finite = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    broken = [step for step, loss in losses if not math.isfinite(loss)]
    description = f"{words.count(len(losses))} recorded values"
    if finite:
        description += f", from {finite[0][1]:.4g} to {finite[-1][1]:.4g}"
    if broken:
        description += (
            f"; {words.count(len(broken))} are not finite, the first at step {words.count(broken[0])}"
        )
    with style():
        figure = new_figure(200)
        axes = figure.add_axes((0.075, 0.24, 0.91, 0.7))
        if finite:
            thinned = _thinned(finite)
            axes.plot([step for step, _ in thinned], [loss for _, loss in thinned], color=CALM, linewidth=1.6)
        if broken:
            axes.plot(
                broken[:_BUCKETS], [0.03] * len(broken[:_BUCKETS]), "x", color=ILL, markersize=6,
                transform=axes.get_xaxis_transform(), clip_on=False, label="not finite",
            )  # fmt: skip
            axes.legend(loc="upper right", frameon=False)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.tick_params(length=3)
        return to_svg(figure, prefix=prefix, title="Loss", description=f"{description}.")


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    size = math.ceil(len(points) / _BUCKETS)
    if size <= 2:
        return points
    kept: list[tuple[int, float]] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        kept.extend(sorted({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])}))
    return kept
