"""One row per quantized weight: what the renderers show of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from precdoctor.evidence import Quantizer
from precdoctor.report import words
from precdoctor.report.report import Report
from precdoctor.rules.finding import Finding
from precdoctor.rules.quantized import quantized, severed_as
from precdoctor.rules.stale_quantized_weight import is_stale

#: headings of `QuantizerRow.cells`
COLUMNS = ("codes", "SQNR", "zero", "clipped", "gradient", "flips/step", "age")
#: what they mean, in a line
KEY = (
    "SQNR: decibels of weight over quantization error.  zero: used as zero.  clipped: beyond the largest "
    "value used.  flips: codes that change.  age: optimizer steps since what is used was made."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerRow:
    """What the reports say of one quantized weight."""

    quantizer: Quantizer
    #: "passes", or how it does not
    gradient: str
    #: ids of the rules that name it
    rules: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the cells of a table, as in `COLUMNS`."""
        last = self.quantizer.last
        flips = self.quantizer.flips_per_step
        return (
            words.count(self.quantizer.levels) if self.quantizer.levels else "-",
            "-" if last is None else "exact" if last.sqnr_db is None else f"{last.sqnr_db:.1f}",
            "-" if last is None else words.percent(last.flushed_share),
            "-" if last is None else words.percent(last.clipped_share),
            self.gradient,
            "-" if flips is None else words.percent(flips),
            words.count(self.quantizer.age_steps),
        )


def quantizer_rows(report: Report) -> tuple[QuantizerRow, ...]:
    """Return the rows of weights on a grid, those with findings first, then by SQNR."""
    named: dict[str, list[Finding]] = {}
    for finding in report.findings:
        for subject in finding.subjects:
            named.setdefault(subject.name, []).append(finding)
    items = {id(item.quantizer): item for item in quantized(report.evidence)}
    found = []
    for quantizer in report.evidence.quantizers:
        item = items.get(id(quantizer))
        stale = item is not None and is_stale(item)
        if quantizer.kind != "quantizer" and not stale:
            continue
        how = severed_as(item) if item is not None else ""
        gradient = {"cut": "cut off", "zero derivative": "zero", "scale only": "scale only"}.get(
            how, "passes"
        )
        if quantizer.route == "buffer":
            gradient = "no parameter"
        rules = tuple(dict.fromkeys(f.rule for f in named.get(quantizer.parameter, [])))
        found.append(QuantizerRow(quantizer=quantizer, gradient=gradient, rules=rules))
    return tuple(sorted(found, key=lambda row: (not row.rules, _decibels(row.quantizer))))


def _decibels(quantizer: Quantizer) -> float:
    last = quantizer.last
    return math.inf if last is None or last.sqnr_db is None else last.sqnr_db
