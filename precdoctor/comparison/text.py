"""A comparison for the terminal. Needs no torch."""

from __future__ import annotations

import math
import shutil

import click

from precdoctor.comparison.result import Comparison, FormatResult, Kept
from precdoctor.comparison.verdict import decimals, status
from precdoctor.formats.text import table
from precdoctor.report import words
from precdoctor.report.terminal import heading, showable, wrap
from precdoctor.rules.wording import size

COLUMNS = ("format", "loss", "difference", "significant", "top-1", "held", "forward", "time")
#: stands for the standard errors of the losses
ERRORS = "±"
#: what gives way first where the terminal is narrow
_GIVE_WAY = ("forward", ERRORS, "top-1")
#: layers listed per format: the ones with the lowest SQNR
_WORST = 5
_MARKS = {
    "agrees": "no",
    "small": "yes, little",
    "differs": "yes",
    "broken": "not finite",
    "open": "can't tell",
}


def render(comparison: Comparison) -> str:
    """Return the report."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = [
        heading(f"{comparison.name}: {headline(comparison)}"),
        "",
        _table(comparison, width),
        "",
        *(wrap(text, width, "") for text in key(comparison)),
        "",
    ]
    for result in comparison.formats[1:]:
        lines += [*_layers(result, width), ""]
    if comparison.notes:
        lines += [*(wrap(note, width, "  ", "- ") for note in comparison.notes), ""]
    lines += [wrap(sentence, width, "") for sentence in comparison.sentences[:-1]]
    lines += [click.style(wrap(comparison.sentences[-1], width, ""), bold=True)]
    return showable("\n".join(lines))


def _table(comparison: Comparison, width: int) -> str:
    rows, columns = format_rows(comparison), list(COLUMNS)
    text = table(rows, columns)
    for name in _GIVE_WAY:
        if max(map(len, text.splitlines())) <= width:
            break
        if name == ERRORS:
            rows = [(row[0], row[1].partition(" ±")[0], *row[2:]) for row in rows]
            text = table(rows, columns)
            continue
        place = columns.index(name)
        del columns[place]
        rows = [(*row[:place], *row[place + 1 :]) for row in rows]
        text = table(rows, columns)
    return text


def headline(comparison: Comparison) -> str:
    """Return what was compared."""
    number = words.count(comparison.samples)
    plural = "" if comparison.samples == 1 else "es" if comparison.unit == "batch" else "s"
    return (
        f"{number} {comparison.unit}{plural}, {words.count(comparison.elements)} elements, on "
        f"{comparison.device} with {comparison.threads} thread{'s' * (comparison.threads > 1)}"
    )


def format_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return one row of `COLUMNS` per format."""
    digits = decimals(comparison.formats)
    return [_row(result, comparison.reference, digits) for result in comparison.formats]


def key(comparison: Comparison) -> tuple[str, ...]:
    """Return what the columns mean."""
    rounded = any(result.kind == "weights" for result in comparison.formats)
    simulated = (
        f"* simulated: {words.count(comparison.quantized_elements)} elements of weights are quantized and "
        "dequantized, the arithmetic stays float32, so there is no time; held is what the codes and scales "
        "would take, packed, and the rest in float32."
    )
    return (
        "loss: mean ± its standard error. difference: to float32, paired sample by sample, ± its standard "
        "error; significant at 95 %. top-1: predictions that are another one. held: weights and buffers; "
        "forward: the most that one pass makes besides. time: median per sample and its ratio to float32's, "
        "formats in turn, warm-up left out.",
        *([simulated] if rounded else []),
    )


def _row(result: FormatResult, reference: FormatResult, digits: int) -> tuple[str, ...]:
    error = f" ± {result.loss_error:.2g}" if math.isfinite(result.loss_error) else ""
    difference = result.difference
    time = result.seconds_per_sample
    return (
        result.stored + ("*" if result.kind == "weights" else ""),
        f"{result.loss:.{digits}f}{error}",
        "" if difference is None else words.difference(difference.mean, difference.error),
        "" if difference is None else _MARKS[status(result, reference.loss)],
        words.percent(result.changed_share),
        size(result.held_bytes),
        "" if result.working_bytes is None else size(result.working_bytes),
        "" if time is None else f"{seconds(time)} {words.ratio(result.time_ratio)}",
    )


def seconds(value: float) -> str:
    """Return a short time: "1.25 s", "3.1 ms", "85 µs"."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1 or unit == "µs":
            return f"{value * scale:.3g} {unit}"
    raise AssertionError


def _layers(result: FormatResult, width: int) -> list[str]:
    found = [layer for layer in result.layers if layer.name != "(output)"]
    output = next((layer for layer in result.layers if layer.name == "(output)"), None)
    worst = sorted(found, key=lambda layer: (not layer.overflows, _rank(layer.sqnr_db)))[:_WORST]
    rows = [(words.short_name(x.name, 50), decibels(x.sqnr_db), decibels(x.expected_db)) for x in worst]
    lines = [heading(f"{result.stored}, layer by layer")]
    first = result.departs
    lines.append(
        "No layer departs from float32 further than rounding explains."
        if first is None
        else wrap(
            f"First to depart from float32 further than rounding explains: {first.name} "
            f"({decibels(first.sqnr_db)} dB, by rounding alone {decibels(first.expected_db)} dB).",
            width,
            "",
        )
    )
    if output is not None:
        lines.append(f"SQNR of the output: {decibels(output.sqnr_db)} dB. The lowest of {len(found)} layers:")
    lines.append(table(rows, ("layer", "SQNR dB", "by rounding alone")))
    if result.sensitivity is not None:
        lines += ["", *_sensitivity(result)]
    return lines


def _sensitivity(result: FormatResult) -> list[str]:
    found = result.sensitivity
    assert found is not None
    lines = [
        f"Kept in float32, measured on {found.before.samples} samples ({len(found.alone)} of "
        f"{words.count(found.layers)} layers tried):"
    ]
    rows = [("(none)", words.difference(found.before.mean, found.before.error), "")]
    rows += [_kept_row(kept) for kept in found.alone[:_WORST]]
    if found.together is not None and len(found.together.names) > 1:
        rows.append(_kept_row(found.together))
    return [*lines, table(rows, ("layers", "difference left", "costs"))]


def _kept_row(kept: Kept) -> tuple[str, str, str]:
    names = [words.short_name(name, 45) for name in kept.names]
    label = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more, together"
    return label, words.difference(kept.difference.mean, kept.difference.error), f"+{size(kept.extra_bytes)}"


def decibels(value: float) -> str:
    """Return a ratio in decibels; "exact" without noise, "not finite" where there is none."""
    if math.isnan(value):
        return "not finite"
    return f"{value:.1f}" if math.isfinite(value) else "exact" if value > 0 else "-inf"


def _rank(value: float) -> float:
    return -math.inf if math.isnan(value) else value
