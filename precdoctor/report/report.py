"""A report: the evidence and what the rules make of it, and the ways to show both."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from precdoctor.evidence import Evidence
from precdoctor.rules import Diagnosis, Finding, diagnose
from precdoctor.trials import Trial


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen and what it means; ``print(report)`` shows it."""

    evidence: Evidence
    diagnosis: Diagnosis
    #: what the cures did when they were tried, with the two runs they are compared with
    trials: tuple[Trial, ...] = ()

    @classmethod
    def of(
        cls,
        evidence: Evidence,
        select: Collection[str] = (),
        ignore: Collection[str] = (),
        trials: Iterable[Trial] = (),
    ) -> Report:
        """Diagnose evidence by all rules, the selected ones, or all but those ignored (`rules.select`)."""
        return cls(evidence, diagnose(evidence, select, ignore), tuple(trials))

    @property
    def verdict(self) -> str:
        """Return "ill", "healthy" or "unknown"."""
        return self.diagnosis.verdict

    @property
    def ok(self) -> bool:
        """Tell whether the run was seen to be healthy; what was not seen is not ok."""
        return self.diagnosis.verdict == "healthy"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return the findings, gravest first."""
        return self.diagnosis.findings

    def __str__(self) -> str:
        import click

        from precdoctor.report import text

        return click.unstyle(text.render(self))

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the report as JSON text (schema precdoctor.report/1), and write it where a path is given."""
        from precdoctor.report import json

        return _written(json.render(self), path)

    def to_sarif(self, path: str | Path | None = None) -> str:
        """Return the findings as SARIF 2.1.0 text, and write it where a path is given."""
        from precdoctor.report import sarif

        return _written(sarif.render(self), path)

    def to_html(self, path: str | Path | None = None) -> str:
        """Return the report as one self-contained HTML page, and write it where a path is given."""
        from precdoctor.report import html

        return _written(html.render(self), path)


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
