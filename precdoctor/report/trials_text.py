"""The terminal report's table of cures: what each did when it was tried."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import click
from tabulate import tabulate

from precdoctor.report import words
from precdoctor.report.cures import compared_with, reason, tried, verdict
from precdoctor.report.terminal import COLOURS, SYMBOLS, heading, wrap
from precdoctor.trials import Trial
from precdoctor.trials.trial import UNTREATED

#: what gives way, in this order, where a narrow terminal would cut names to less than `_NAME` characters
_GIVE_WAY = ("difference", "before", "time", "bytes", "travel")
_NAME = 19
_KEY = {
    "EDQ": "of the parameters that were ill, 1 = descent as intended, 0 = frozen",
    "loss": "mean of the last quarter",
    "difference": "of this loss to the untreated run's, ± standard error",
    "travel": "of the parameters that were ill, 1 = as far as in float32",
    "time": "of a step, untreated = 1",
    "bytes": "held per parameter after a step",
}


def render(trials: Sequence[Trial], width: int) -> str:
    """Return the section on the trials; empty without any."""
    cured = tried(trials)
    if not cured:
        return ""
    ordered = [*compared_with(trials), *cured]
    lines = [
        heading("Cures, tried"),
        wrap(verdict(trials), width, ""),
        "",
        _table(ordered, width),
    ]
    told = [trial for trial in ordered if trial.why or trial.error]
    lines.extend(["", *(wrap(f"{trial.label}: {reason(trial)}", width, "    ", "  ") for trial in told)])
    return "\n".join(lines)


def _outcome(trial: Trial) -> str:
    if trial.outcome is None:
        return ""
    return click.style(f"{SYMBOLS[trial.outcome]} {trial.outcome}", fg=COLOURS[trial.outcome])


def _table(trials: Sequence[Trial], width: int) -> str:
    names = max(len(words.printable(trial.label)) for trial in trials)
    for given in range(len(_GIVE_WAY) + 1):
        rows = [_cells(trial, _before(trial, trials), _GIVE_WAY[:given]) for trial in trials]
        # tabulate keeps two spaces between columns, and two more beside a header that is the widest
        taken = sum(max(len(t) + 2, *(len(click.unstyle(row[t])) for row in rows)) + 2 for t in rows[0])
        if taken + min(names, _NAME) <= width:
            break
    table = tabulate(
        [
            [words.short_name(trial.label, width - taken), *row.values()]
            for trial, row in zip(trials, rows, strict=True)
        ],
        headers=["cure", *rows[0]],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left", "left"] + ["right"] * (len(rows[0]) - 1),
    )
    return f"{table}\n{_key(rows[0], width)}"


def _cells(trial: Trial, before: Trial | None, without: Sequence[str]) -> dict[str, str]:
    edq = words.edq(trial.edq)
    cells = {
        "outcome": _outcome(trial),
        "EDQ": edq if before is None or "before" in without else f"{words.edq(before.edq)} -> {edq}",
        "loss": words.loss(trial.loss_last),
        "difference": words.difference(trial.loss_difference, trial.loss_difference_error),
        "travel": words.edq(trial.travel_share),
        "time": words.ratio(trial.step_time_ratio),
        "bytes": words.byte_count(trial.bytes_per_parameter),
    }
    return {title: cell for title, cell in cells.items() if title not in without}


def _before(trial: Trial, trials: Sequence[Trial]) -> Trial | None:
    """Return the untreated run where it was judged by the same parameters."""
    if trial.outcome is None or trial.edq is None:
        return None
    return next((t for t in trials if t.remedy == UNTREATED and set(t.subjects) == set(trial.subjects)), None)


def _key(titles: Collection[str], width: int) -> str:
    key = "  ".join(f"{title}: {meaning}." for title, meaning in _KEY.items() if title in titles)
    return click.style(wrap(key, width, ""), dim=True)
