"""The findings as SARIF 2.1.0, the format in which code hosts and editors take findings at lines of code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

from precdoctor.evidence import Contents
from precdoctor.report.cures import cures
from precdoctor.report.report import Report
from precdoctor.rules import CATALOGUE, Finding, Location
from precdoctor.rules.wording import several
from precdoctor.trials import Trial

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def render(report: Report) -> str:
    """Return the findings as SARIF text; those of which no line is known come without a location."""
    run = report.evidence.run
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {"name": "precdoctor", "version": version("precdoctor"), "rules": _rules()}
                },
                # a script that failed was still observed: the log is of the observation
                "invocations": [{"executionSuccessful": True, "arguments": [run.target, *run.argv]}],
                "results": [
                    _result(finding, report.trials, report.evidence.contents) for finding in report.findings
                ],
            }
        ],
    }
    return json.dumps(log, indent=1, ensure_ascii=False) + "\n"


def _rules() -> list[dict[str, Any]]:
    return [
        {
            "id": rule.id,
            "name": rule.name,
            "shortDescription": {"text": (rule.__doc__ or rule.name).strip().partition("\n")[0]},
        }
        for rule in CATALOGUE
    ]


def _result(finding: Finding, trials: Sequence[Trial], contents: Contents | None = None) -> dict[str, Any]:
    # SARIF shows a result at its first location: the cause, where one is known
    if contents is not None:
        return _in_file(finding, contents.files[-1].path)
    places = sorted(finding.locations, key=lambda location: location.role != "cause")
    subjects = [{"name": s.name, "kind": s.kind} for s in finding.subjects]
    return {
        "ruleId": finding.rule,
        "level": finding.severity,
        "message": {"text": finding.message + _cured(finding, trials)},
        "locations": [{**_physical(place), "logicalLocations": subjects} for place in places[:1]],
        "relatedLocations": [_physical(place) for place in places[1:]],
    }


def _in_file(finding: Finding, path: str) -> dict[str, Any]:
    """Return a finding about a checkpoint: its location is the file, which has no lines."""
    subjects = [{"name": s.name, "kind": s.kind} for s in finding.subjects]
    where = {"physicalLocation": {"artifactLocation": {"uri": _uri(path)}}, "logicalLocations": subjects}
    return {
        "ruleId": finding.rule,
        "level": finding.severity,
        "message": {"text": finding.message},
        "locations": [where],
    }


def _uri(path: str) -> str:
    return Path(path).as_uri() if PurePath(path).is_absolute() else PurePath(path).as_posix()


def _cured(finding: Finding, trials: Sequence[Trial]) -> str:
    """Return which cures of the finding worked, as a sentence to append."""
    labels = [cure.label for cure in cures(finding, trials) if cure.status == "cured"]
    return f" Cured, when tried, by {several(labels)}." if labels else ""


def _physical(location: Location) -> dict[str, Any]:
    place = location.place
    said = location.role if place.certain else f"likely {location.role}"
    region: dict[str, Any] = {"startLine": place.line}
    if place.code:
        region["snippet"] = {"text": place.code}
    return {
        "physicalLocation": {"artifactLocation": {"uri": _uri(place.file)}, "region": region},
        "message": {"text": said},
    }
