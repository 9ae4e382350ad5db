from __future__ import annotations

import dataclasses
import json
from typing import Any

from precdoctor.evidence import Place
from precdoctor.report import Report
from precdoctor.rules import CATALOGUE, Location
from tests.report import builders, tried


def results(report: Report) -> list[dict[str, Any]]:
    (run,) = json.loads(report.to_sarif())["runs"]
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == {rule.id for rule in CATALOGUE}
    assert all(rule["shortDescription"]["text"] for rule in run["tool"]["driver"]["rules"])
    found = run["results"]
    assert isinstance(found, list)
    return found


def test_every_finding_is_a_result_at_the_line_that_causes_it() -> None:
    report = builders.ill()
    for result, finding in zip(results(report), report.findings, strict=True):
        assert (result["ruleId"], result["level"]) == (finding.rule, finding.severity)
        assert result["message"]["text"] == finding.message
        lines = [location.place.line for location in finding.locations if location.role == "cause"]
        shown = [r["physicalLocation"]["region"]["startLine"] for r in result["locations"]]
        assert shown == lines[:1]
        assert len(result["relatedLocations"]) == max(len(finding.locations) - 1, 0)


def test_files_are_uris_and_what_was_only_searched_is_likely() -> None:
    report = builders.ill()
    place = Place(file="/home/me/my project/train.py", line=3, certain=False)
    finding = dataclasses.replace(report.findings[0], locations=(Location(place=place, role="cause"),))
    diagnosis = dataclasses.replace(report.diagnosis, findings=(finding,))
    (result,) = results(dataclasses.replace(report, diagnosis=diagnosis))
    (location,) = result["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "file:///home/me/my%20project/train.py"
    assert location["message"]["text"] == "likely cause"


def test_a_healthy_run_has_no_results() -> None:
    assert results(builders.healthy()) == []


def test_the_message_names_the_cures_that_worked() -> None:
    first, second = results(tried.treated())
    assert first["message"]["text"].endswith(
        "lost. Cured, when tried, by autocast, master-weights and stochastic-rounding."
    )
    assert "Cured" not in second["message"]["text"]
