"""How numbers, names and places read in a report."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from precdoctor.evidence import Place, Run
from precdoctor.rules.finding import Subject


def printable(text: str) -> str:
    """Return the text with control characters escaped: a name must not steer the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def edq(value: float | None) -> str:
    """Return an EDQ with two decimals; three where two would read as frozen."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}"


def interval(low: float | None, high: float | None) -> str:
    """Return a confidence interval; empty where there is none, or no doubt."""
    return "" if low is None or high is None or low == high else f"{edq(low)} to {edq(high)}"


def percent(share: float | None) -> str:
    """Return a share of 0..1 in percent; 99.97 % does not become 100 %."""
    if share is None:
        return "-"
    text = f"{100 * share:.1f}"
    if text == "100.0" and share < 1:
        text = ">99.9"
    elif text == "0.0" and share > 0:
        text = "<0.1"
    return f"{text.removesuffix('.0')} %"


def bits(value: float | None) -> str:
    """Return a headroom in bits with its sign."""
    return "-" if value is None else f"{value:+.1f}"


def count(value: int) -> str:
    """Return a whole number with thousands separated: 18,874,368."""
    return f"{value:,}"


def subjects(of: Sequence[Subject]) -> str:
    """Return the first name and how many more there are."""
    names = [printable(subject.name) for subject in of]
    return f"{names[0]} and {count(len(names) - 1)} more" if len(names) > 1 else "".join(names)


def short_name(name: str, width: int) -> str:
    """Return a name in so many characters: layer and kind stand at its ends, so it is cut in the middle."""
    text = printable(name)
    if len(text) <= width:
        return text
    head = (width - 1) * 2 // 5
    return f"{text[:head]}…{text[head + 1 - width :]}"


def shape(sizes: Iterable[int]) -> str:
    """Return "256 × 64"; "scalar" for no dimension."""
    return " × ".join(map(str, sizes)) or "scalar"


def place(at: Place) -> str:
    """Return "train.py:116"."""
    return f"{printable(at.file)}:{at.line}"


def command(run: Run) -> str:
    """Return what was run, as it would be typed."""
    return printable(shlex.join((run.target, *run.argv)))


def again(run: Run) -> str:
    """Return target and arguments as a command of ours takes them: a module, known by its dots, needs -m."""
    target = PurePath(run.target)
    module = "." in run.target and target.suffix != ".py" and target.name == run.target
    return ("-m " if module else "") + command(run)


def steps(run: Run) -> str:
    """Return how long the run was and how it ended, as one phrase."""
    length = f"{count(run.steps)} optimizer step{'' if run.steps == 1 else 's'}"
    ended = {"stopped": "then stopped", "failed": "then the script failed", "interrupted": "then interrupted"}
    parts = [length, f"{count(run.observed)} observed in detail", ended.get(run.ended, "")]
    return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Return a time as "0.4 s", "12 s" or "3 min 20 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def loss(value: float | None) -> str:
    """Return a loss with three decimals, three digits where those say little; "nan" where it is none."""
    if value is None:
        return "-"
    return f"{value:.3f}" if 0.1 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


def difference(value: float | None, error: float | None) -> str:
    """Return a signed difference with its standard error, to the error's first digit: "-0.31 ± 0.02"."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    if error is None or not math.isfinite(error):
        return f"{value:+.2g}"
    if error <= 0:
        return f"{value:+.3g}" if value else "0"
    decimals = min(max(-math.floor(math.log10(error)), 0), 8)
    return f"{value:+.{decimals}f} ± {error:.{decimals}f}"


def ratio(value: float | None) -> str:
    """Return a ratio: "1.12×"."""
    return "-" if value is None else f"{value:.2f}×"


def byte_count(value: float | None) -> str:
    """Return bytes per parameter: "12", "16.1"."""
    return "-" if value is None else f"{value:.1f}".removesuffix(".0")
