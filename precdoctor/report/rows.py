"""One row per parameter: the few numbers that every renderer shows of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from precdoctor.evidence import Histogram, Parameter
from precdoctor.report.report import Report
from precdoctor.rules.descent import Quality, quality
from precdoctor.rules.finding import SEVERITIES, Severity
from precdoctor.rules.reading import stepped


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the reports say of one parameter; None where nothing was seen."""

    parameter: Parameter
    #: effective descent quality: of single steps, or net over the run where the optimizer carries remainders
    edq: float | None = None
    #: its 95 % confidence interval
    edq_low: float | None = None
    edq_high: float | None = None
    #: "step" or "net": which of the two ``edq`` is
    measure: str = "step"
    #: share (0..1) of the intended updates after which the element was unchanged
    lost_share: float | None = None
    #: 5th, 50th and 95th percentile of the headroom, in bits
    headroom_bits: tuple[float | None, float | None, float | None] = (None, None, None)
    #: ids of the rules that name it, and the gravest severity among them
    rules: tuple[str, ...] = ()
    severity: Severity | None = None

    @property
    def ill(self) -> bool:
        """Tell whether a finding of more than a note names the parameter."""
        return self.severity in ("warning", "error")


def rows(report: Report) -> tuple[Row, ...]:
    """Return the rows in the model's order."""
    named: dict[str, list[tuple[Severity, str]]] = {}
    for finding in report.findings:
        for subject in finding.subjects:
            if subject.kind == "parameter":
                named.setdefault(subject.name, []).append((finding.severity, finding.rule))
    # as the rules judge it, so that table and findings never disagree; by identity, as names may repeat
    judged = {id(item.parameter): quality(item, report.evidence.run) for item in stepped(report.evidence)}
    return tuple(
        _row(parameter, judged.get(id(parameter)), named.get(parameter.name, []))
        for parameter in report.evidence.parameters
    )


def worst_first(of: tuple[Row, ...]) -> list[Row]:
    """Return the rows by severity, then by EDQ; those of unknown EDQ last."""
    return sorted(of, key=lambda row: (-rank(row.severity), math.inf if row.edq is None else row.edq))


def rank(severity: Severity | None) -> int:
    """Return 0 for no finding, and the more the graver it is."""
    return 0 if severity is None else SEVERITIES.index(severity) + 1


def finite(value: float | None) -> float | None:
    """Return the value, or None where it is not a number that JSON can hold."""
    return value if value is not None and math.isfinite(value) else None


def quantiles(histogram: Histogram) -> tuple[float | None, float | None, float | None]:
    """Return the 5th, 50th and 95th percentile; None each when the histogram is empty."""
    return histogram.quantile(0.05), histogram.quantile(0.5), histogram.quantile(0.95)


def _row(parameter: Parameter, quality: Quality | None, named: list[tuple[Severity, str]]) -> Row:
    updates = parameter.updates
    seen = updates is not None and updates.replay != "none" and updates.intended > 0
    net = quality is not None and quality.basis == "net"
    return Row(
        parameter=parameter,
        edq=finite(quality.edq) if quality is not None else None,
        edq_low=finite(quality.low) if quality is not None and not net else None,
        edq_high=finite(quality.high) if quality is not None and not net else None,
        measure="net" if net else "step",
        lost_share=updates.lost_share if updates is not None and seen else None,
        headroom_bits=quantiles(updates.headroom_bits) if updates is not None else (None, None, None),
        rules=tuple(sorted({rule for _, rule in named})),
        severity=max((severity for severity, _ in named), key=SEVERITIES.index, default=None),
    )
