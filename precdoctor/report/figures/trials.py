"""What the cures did when tried: the loss of each beside the untreated run's, and the EDQ they reached."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from precdoctor.report import words
from precdoctor.report.cures import compared_with, tried
from precdoctor.report.figures.canvas import (
    CALM,
    ILL,
    INK,
    MUTED,
    NOTE,
    OK,
    WARN,
    WIDTH,
    new_figure,
    style,
    to_svg,
)
from precdoctor.rules.wording import number
from precdoctor.trials import Trial
from precdoctor.trials.trial import FLOAT32, UNTREATED

#: colour of an outcome; the word stands beside it everywhere
COLOURS = {
    "cured": OK, "helped": NOTE, "no effect": WARN, "harmed": ILL, "does not apply": MUTED, None: CALM,
}  # fmt: skip

_COLUMNS, _PANEL, _TITLE, _GAP, _LEFT, _BOTTOM = 3, 96.0, 34.0, 18.0, 46.0, 40.0
#: from so many losses on, curves that zigzag are shown as running means over a twentieth of them
_SMOOTHED, _SHARE = 40, 20
#: points drawn of a curve at most
_POINTS = 150
#: characters of a name above a panel, and left of a bar
_PANEL_NAME, _BAR_NAME = 27, 27
_BAR_PITCH, _BAR_LEFT, _BAR_RIGHT = 22.0, 190.0, 150.0
#: the bars' axis ends at most here; what lies beyond is cut, and its number stands beside it
_LOWEST, _HIGHEST = -0.5, 1.6

_Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def trial_losses(trials: Sequence[Trial], *, prefix: str) -> str | None:
    """Draw one panel per cure: its loss, that of the untreated run and that in float32. None without any."""
    drawn = [trial for trial in tried(trials) if _finite(trial)[0].size > 1]
    if not drawn:
        return None
    beside = [trial for trial in compared_with(trials) if _finite(trial)[0].size > 1]
    window = max(_window(trial) for trial in (*beside, *drawn))
    curves = {trial.label: _smooth(_finite(trial), window) for trial in (*beside, *drawn)}
    low, high = _limits([curves[t.label] for t in beside], [curves[t.label] for t in drawn])
    rows = math.ceil(len(drawn) / _COLUMNS)
    total = rows * (_TITLE + _PANEL) + (rows - 1) * _GAP + _BOTTOM + 22
    width = (WIDTH - _LEFT - 8 - (_COLUMNS - 1) * _GAP) / _COLUMNS
    first = min(float(steps[0]) for steps, _ in curves.values())
    last = max(float(steps[-1]) for steps, _ in curves.values())
    with style():
        figure = new_figure(total)
        for index, trial in enumerate(drawn):
            row, column = divmod(index, _COLUMNS)
            bottom = total - 22 - (row + 1) * (_TITLE + _PANEL) - row * _GAP
            left = _LEFT + column * (width + _GAP)
            axes = figure.add_axes((left / WIDTH, bottom / total, width / WIDTH, _PANEL / total))
            for other in beside:
                _compare(axes, curves[other.label], other)
            _panel(axes, trial, curves[trial.label], high)
            axes.set_xlim(first, max(last, first + 1))
            axes.set_ylim(low, high)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
            axes.tick_params(length=3, labelsize=10.5, labelleft=column == 0)
            axes.tick_params(labelbottom=index + _COLUMNS >= len(drawn))
            if column == 0:
                axes.set_ylabel("loss")
            if index + _COLUMNS >= len(drawn):
                axes.set_xlabel("step")
        _key(figure.add_axes((0, 1 - 20 / total, 1, 20 / total)), beside)
        averaged = f" Running means over {window} recorded values." if window > 1 else ""
        return to_svg(
            figure,
            prefix=prefix,
            title="Loss of the cures when tried",
            description=f"One panel per cure. {'; '.join(map(_ending, (*beside, *drawn)))}.{averaged}",
        )


def smoothing(trials: Sequence[Trial]) -> int:
    """Return over how many recorded values `trial_losses` averages; 1: it does not."""
    seen = [t for t in (*compared_with(trials), *tried(trials)) if _finite(t)[0].size > 1]
    return max((_window(trial) for trial in seen), default=1)


def edq_bars(trials: Sequence[Trial], *, prefix: str) -> str | None:
    """Draw the EDQ that each run reached, from 0 (frozen) to 1 (as intended). None when none was measured."""
    ordered = [*compared_with(trials), *tried(trials)]
    known = [t.edq for t in ordered if t.edq is not None and math.isfinite(t.edq)]
    if not known or len(ordered) < 2:
        return None
    low = max(min(0.0, *known), _LOWEST) - (0.04 if min(known) < 0 else 0)
    high = min(max(1.06, *known), _HIGHEST)
    height = _BAR_PITCH * len(ordered)
    total = height + 62
    with style():
        figure = new_figure(total)
        width = WIDTH - _BAR_LEFT - _BAR_RIGHT
        axes = figure.add_axes((_BAR_LEFT / WIDTH, 40 / total, width / WIDTH, height / total))
        for value in (0.0, 1.0):
            axes.axvline(value, color=INK if value == 0 else OK, linewidth=1.2, zorder=0)
        for row, trial in enumerate(ordered):
            _bar(axes, row, trial, low, high)
        axes.set_xlim(low, high)
        axes.set_ylim(len(ordered) - 0.4, -0.6)
        axes.set_yticks([])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.tick_params(length=3)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("effective descent quality of the parameters that were ill")
        for value, text in ((0.0, "frozen"), (1.0, "as intended")):
            axes.annotate(
                text, (value, 1), (0, 4), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                ha="center", va="bottom", color=MUTED, fontsize=10.5, annotation_clip=False,
            )  # fmt: skip
        said = "; ".join(f"{words.printable(t.label)} {words.edq(t.edq)}" for t in ordered)
        return to_svg(figure, prefix=prefix, title="EDQ of the cures when tried", description=f"EDQ: {said}.")


def _bar(axes: Axes, row: int, trial: Trial, low: float, high: float) -> None:
    colour = COLOURS[trial.outcome]
    compared = trial.outcome is None
    where = axes.get_yaxis_transform()
    axes.annotate(
        words.short_name(trial.label, _BAR_NAME), (0, row), (-8, 0), xycoords=where,
        textcoords="offset points", ha="right", va="center", color=MUTED if compared else INK,
        style="italic" if compared else "normal", annotation_clip=False,
    )  # fmt: skip
    known = trial.edq is not None and math.isfinite(trial.edq)
    if known:
        assert trial.edq is not None
        axes.barh(row, min(max(trial.edq, low), high), 0.62, color=colour, linewidth=0)
    text = words.edq(trial.edq) if known else "not measured"
    if trial.outcome == "does not apply" and not known:
        text = "does not apply"
    elif trial.outcome is not None:
        text += f", {trial.outcome}"
    axes.annotate(
        text, (1, row), (10, 0), xycoords=where, textcoords="offset points", ha="left", va="center",
        color=MUTED if compared else colour, annotation_clip=False,
    )  # fmt: skip


def _compare(axes: Axes, curve: _Curve, trial: Trial) -> None:
    dashes = (3, 2) if trial.remedy == UNTREATED else (1, 0)
    axes.plot(*curve, color=MUTED if trial.remedy == UNTREATED else CALM, linewidth=1.2, dashes=dashes)


def _panel(axes: Axes, trial: Trial, curve: _Curve, top: float) -> None:
    colour = COLOURS[trial.outcome]
    axes.plot(*curve, color=colour, linewidth=2)
    broken = next((step for step, loss in trial.losses if not math.isfinite(loss)), None)
    if broken is not None:
        axes.plot(
            [broken], [0.06], "x", color=ILL, markersize=7, transform=axes.get_xaxis_transform(),
            clip_on=False,
        )  # fmt: skip
        axes.annotate(
            "not finite", (broken, 0.06), (7, 0), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", va="center", color=ILL, fontsize=10.5,
        )  # fmt: skip
    if (highest := float(curve[1].max())) > top:  # part of the curve, or all of it, is outside
        axes.annotate(
            f"↑ up to {number(highest)}", (1, 1), (-2, -4), xycoords="axes fraction",
            textcoords="offset points", ha="right", va="top", color=colour, fontsize=10.5,
        )  # fmt: skip
    name = words.short_name(trial.label, _PANEL_NAME)
    for text, above, tone in ((name, 17, INK), (trial.outcome or "", 3, colour)):
        axes.annotate(
            text, (0, 1), (0, above), xycoords="axes fraction", textcoords="offset points",
            va="bottom", color=tone, fontsize=11, annotation_clip=False,
        )  # fmt: skip


def _key(axes: Axes, beside: Sequence[Trial]) -> None:
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, 20)
    axes.axis("off")
    at = _LEFT
    names = {UNTREATED: "untreated", FLOAT32: "float32"}
    for trial in beside:
        _compare(axes, (np.array([at, at + 22]), np.array([10.0, 10.0])), trial)
        axes.text(at + 28, 10, names[trial.remedy], va="center", color=MUTED, fontsize=11)
        at += 118
    for offset, colour in enumerate((OK, NOTE, WARN, ILL)):
        axes.plot([at + 11 * offset, at + 11 * offset + 9], [10, 10], color=colour, linewidth=2)
    axes.text(at + 50, 10, "the cure, coloured by its outcome", va="center", color=MUTED, fontsize=11)


def _finite(trial: Trial) -> _Curve:
    kept = [(step, loss) for step, loss in trial.losses if math.isfinite(loss)]
    values = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def _window(trial: Trial) -> int:
    _, losses = _finite(trial)
    if losses.size < _SMOOTHED:
        return 1
    zigzag = float(np.median(np.abs(np.diff(losses))))
    return max(losses.size // _SHARE, 3) if zigzag > 0.01 * float(np.ptp(losses)) else 1


def _smooth(curve: _Curve, window: int) -> _Curve:
    steps, losses = curve
    window = min(window, max(losses.size // 2, 1))
    if window > 1:
        kernel = np.full(window, 1 / window)
        steps, losses = np.convolve(steps, kernel, "valid"), np.convolve(losses, kernel, "valid")
    kept = np.unique(np.linspace(0, losses.size - 1, min(losses.size, _POINTS)).round().astype(int))
    return steps[kept], losses[kept]


def _limits(beside: Sequence[_Curve], others: Sequence[_Curve]) -> tuple[float, float]:
    """Return the loss axis: the runs of comparison whole, a cure that ran away cut at twice their range."""
    whole = [values for _, values in (beside or others)]
    low, high = min(float(v.min()) for v in whole), max(float(v.max()) for v in whole)
    span = max(high - low, 1e-9 * max(abs(low), abs(high)), 1e-30)
    everything = [values for _, values in others]
    low = max(min(low, *(float(v.min()) for v in everything)), low - span)
    high = min(max(high, *(float(v.max()) for v in everything)), high + span)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _ending(trial: Trial) -> str:
    outcome = f", {trial.outcome}" if trial.outcome is not None else ""
    return f"{words.printable(trial.label)}{outcome}: {words.loss(trial.loss_last)} at the end"
