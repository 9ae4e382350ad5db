from __future__ import annotations

import dataclasses

import pytest

from precdoctor.report import Report
from tests.report import builders, tried


@pytest.mark.parametrize(
    ("report", "verdict", "ok"),
    [
        (builders.ill(), "ill", False),
        (builders.healthy(), "healthy", True),
        (builders.nothing_seen(), "unknown", False),
    ],
)
def test_only_what_was_seen_to_be_healthy_is_ok(report: Report, verdict: str, ok: bool) -> None:
    assert (report.verdict, report.ok) == (verdict, ok)


def test_a_report_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        builders.healthy().evidence = builders.ill().evidence  # type: ignore[misc]


def test_evidence_is_diagnosed_into_a_report() -> None:
    report = Report.of(builders.ill().evidence)
    assert (report.verdict, report.findings[0].rule) == ("ill", "PD101")
    assert str(report)


def test_ignored_rules_are_not_reported() -> None:
    assert "PD101" not in {f.rule for f in Report.of(builders.ill().evidence, ignore=("PD101",)).findings}
    assert {f.rule for f in Report.of(builders.ill().evidence, select=("PD101",)).findings} == {"PD101"}


def test_every_renderer_takes_what_the_rules_really_say() -> None:
    report = Report.of(builders.ill().evidence)
    assert "Number line of bfloat16" in report.to_html()
    assert report.to_json()


def test_trials_come_with_the_evidence_and_change_no_finding() -> None:
    evidence = builders.ill().evidence
    report = Report.of(evidence, trials=tried.trials())
    assert report.trials == tried.trials()
    assert report.diagnosis == Report.of(evidence).diagnosis
    assert "Cures, tried" in str(report)
    assert 'id="cures"' in report.to_html()
