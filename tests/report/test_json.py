from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from precdoctor.report import Report
from precdoctor.trials import Trial
from tests.report import builders, tried


def schema() -> dict[str, Any]:
    text = resources.files("precdoctor.report").joinpath("report.schema.json").read_text(encoding="utf-8")
    loaded = json.loads(text)
    assert isinstance(loaded, dict)
    return loaded


def strict(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    loaded = json.loads(text, parse_constant=refuse)
    assert isinstance(loaded, dict)
    return loaded


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("build", [builders.ill, builders.healthy, builders.nothing_seen, tried.treated])
def test_reports_obey_the_schema(build: Callable[[], Report]) -> None:
    jsonschema.validate(strict(build().to_json()), schema(), cls=jsonschema.Draft202012Validator)


def test_the_schema_notices_a_missing_key() -> None:
    report = strict(builders.ill().to_json())
    del report["findings"][0]["remedies"][0]["trial"]
    with pytest.raises(jsonschema.ValidationError, match="trial"):
        jsonschema.validate(report, schema(), cls=jsonschema.Draft202012Validator)


def test_the_keys_are_those_of_the_design() -> None:
    report = strict(builders.ill().to_json())
    assert (report["schema"], report["verdict"]) == ("precdoctor.report/1", "ill")
    assert {"target", "argv", "steps", "torch", "device", "started"} <= report["run"].keys()
    finding = report["findings"][0]
    assert finding["subjects"][0] == {"kind": "parameter", "name": "blocks.0.attention_norm.weight"}
    cause = {key: finding["locations"][0][key] for key in ("file", "line", "role", "certain")}
    assert cause == {"file": "train.py", "line": 116, "role": "cause", "certain": True}
    assert [cure["rank"] for cure in finding["remedies"]] == [1, 2, 3]
    assert finding["remedies"][0]["id"] == "autocast"
    assert finding["remedies"][0]["trial"] is None
    parameter = next(p for p in report["parameters"] if p["name"] == "norm.weight")
    assert (parameter["format"], parameter["numel"], parameter["edq"]) == ("bfloat16", 256, 0.0)
    assert parameter["headroom_bits"]["p50"] == pytest.approx(-2.8, abs=0.3)


def test_what_is_not_finite_is_null() -> None:
    assert strict(builders.ill().to_json())["findings"][0]["measured"]["decay"] is None


def test_what_was_not_seen_is_null() -> None:
    unseen = dataclasses.replace(builders.parameter("unseen.weight"), updates=None, weight=None)
    parameter = strict(builders.ill((unseen,)).to_json())["parameters"][0]
    assert (parameter["edq"], parameter["lost_share"]) == (None, None)
    assert parameter["headroom_bits"] == {"p5": None, "p50": None, "p95": None}


def test_a_path_gets_the_same_text(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert builders.healthy().to_json(path) == path.read_text(encoding="utf-8")


def test_cures_are_ranked_by_their_trials() -> None:
    report = strict(tried.treated().to_json())
    cures = report["findings"][0]["remedies"]
    assert [cure["rank"] for cure in cures] == [1, 2, 3, 4, 5, 6, 7, 8]
    group_lr, untried, edit = cures[3:6]
    assert (group_lr["id"], group_lr["status"], group_lr["settings"]) == ("group-lr", "helped", {})
    assert (group_lr["trial"]["label"], group_lr["trial"]["settings"]) == (
        "group-lr x22.6",
        {"factor": 22.6},
    )
    assert "losses" not in group_lr["trial"]
    assert (untried["status"], untried["trial"]) == ("not tried", None)
    assert (edit["status"], edit["trial"]) == ("by hand", None)


def test_trials_have_every_field_and_their_losses() -> None:
    trials = strict(tried.treated().to_json())["trials"]
    assert [trial["label"] for trial in trials[:3]] == ["untreated", "float32", "autocast"]
    assert {field.name for field in dataclasses.fields(Trial)} == trials[0].keys()
    broken = next(trial for trial in trials if trial["label"] == "eps 1e-05")
    assert broken["losses"][20:22] == [[20, pytest.approx(4.2)], [21, None]]
    assert broken["loss_last"] is None
    assert len(trials) == 12
