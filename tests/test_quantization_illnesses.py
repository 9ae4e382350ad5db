"""The ways in which quantized training goes wrong are told apart, on the four-bit language model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from precdoctor import reproduce

SAMPLE = reproduce.sample_models() / "fp4_lm"
#: quantized weights of the model
WEIGHTS = 13

#: recipe, then what it has: rule, severity and a line of the program that is among its causes
ILL = [
    ("fp4-reported", "PD601", "error", "self._quantized = quantize_fp4(self.weight.data)"),
    ("zero-gradient", "PD601", "error", "return quantizers.e2m1_channel(self.weight, scale)"),
    ("scale-in-graph", "PD601", "error", "return quantizers.e2m1_channel(self.weight)"),
    ("buffer", "PD601", "warning", "quantized = self.quantizer(self.weight.data)"),
    ("severed-none", "PD201", "error", "return F.linear(x, self.used_weight())"),
    ("stale-cache", "PD602", "error", "return self.weight + (self._cache - self.weight).detach()"),
    ("clip-1-sigma", "PD604", "error", ""),
    ("clip-passed-through", "PD604", "error", ""),
    ("no-scale", "PD604", "error", ""),
    ("ste-int2", "PD603", "warning", ""),
    ("no-master-nvfp4", "PD106", "error", "self.weight.copy_(self.quantizer(self.weight))"),
    ("bf16-latent-low-lr", "PD102", "error", ""),
    ("full-e2m1-tensor", "PD603", "error", "gradient = ctx.quantizer(gradient, ctx.round_gradient)"),
    ("full-mxfp4", "PD604", "warning", "gradient = ctx.quantizer(gradient, ctx.round_gradient)"),
    ("broken-tie", "PD605", "warning", "setattr(parent, name, made)"),
]
#: those whose subject is not all weights: an operation, or the two that were one
OTHERS = {"full-e2m1-tensor": 1, "full-mxfp4": 1, "broken-tie": 2}
HEALTHY = ["untied", "ste-bnb-fp4", "ste-nvfp4", "ste-int8", "no-master-int8-stochastic", "full-nvfp4"]
HEALTHY += ["full-nvfp4-stochastic"]


def scan(recipe: str, folder: Path, *, steps: int = 33) -> dict[str, Any]:
    report = folder / "report.json"
    command = [sys.executable, "-m", "precdoctor", "scan", "--fail-on", "never", "--steps", str(steps)]
    program = [str(SAMPLE / "train.py"), "--recipe", recipe, "--updates", "250", "--eval-every", "1000"]
    done = subprocess.run([*command, "--json", str(report), *program], capture_output=True, text=True)
    assert report.exists(), done.stderr[-2000:]
    document: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return document


@pytest.mark.scenario
@pytest.mark.parametrize(("recipe", "rule", "severity", "cause"), ILL, ids=[row[0] for row in ILL])
def test_each_illness_has_its_own_name(
    recipe: str, rule: str, severity: str, cause: str, tmp_path: Path
) -> None:
    report = scan(recipe, tmp_path)

    grave = [f for f in report["findings"] if f["severity"] != "note"]
    (finding,) = [f for f in grave if f["rule"] == rule]
    assert finding["severity"] == severity
    assert len(finding["subjects"]) == OTHERS.get(recipe, WEIGHTS)
    family = {f["rule"] for f in grave if f["rule"].startswith(("PD2", "PD6"))} | {rule}
    assert family == {rule}
    if cause:
        assert cause in [place["code"] for place in finding["locations"] if place["role"] == "cause"]


@pytest.mark.scenario
@pytest.mark.parametrize("recipe", HEALTHY)
def test_what_trains_is_healthy(recipe: str, tmp_path: Path) -> None:
    report = scan(recipe, tmp_path)

    assert [f["message"] for f in report["findings"] if f["severity"] != "note"] == []
    assert report["verdict"] == "healthy"


@pytest.mark.scenario
def test_a_dead_zone_is_a_note(tmp_path: Path) -> None:
    report = scan("low-lr", tmp_path, steps=105)

    assert [(f["rule"], f["severity"]) for f in report["findings"]] == [("PD602", "note")]
