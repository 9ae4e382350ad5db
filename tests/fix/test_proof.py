"""A proof holds only when the illness is gone, was looked for, and nothing came in its place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from precdoctor.evidence import Evidence, Run, Updates, WindowedEdq
from precdoctor.fix.candidates import Candidate
from precdoctor.fix.proof import Scan, judge
from precdoctor.rules import diagnose
from tests.fix.build import optimizer, parameter, save, treatment


def evidence(
    edq: float, name: str = "weight", *, intended: int = 1000, steps: int = 20, ended: str = "stopped"
) -> Evidence:
    save("opt = AdamW(w)\n")
    window = WindowedEdq(window=1, edq=edq, low=edq, high=edq)
    lost = 1.0 - min(edq, 1.0)
    updates = Updates(
        replay="elementwise", intended=intended, lost_share=lost, edq=(window,), relative_rms=1e-3
    )
    stepping = replace(optimizer("opt ="), steps=steps, observed=steps)
    return Evidence(
        run=Run(target="train.py", steps=steps, observed=steps, ended=ended, error="ValueError: no"),
        parameters=(replace(parameter(name), updates=updates),),
        optimizers=(stepping,),
        losses=((1, 1.0),),
    )


def verdict(after: Evidence | None, log: str = "") -> str:
    before = evidence(0.0)
    diagnosis = diagnose(before)
    assert [finding.rule for finding in diagnosis.findings] == ["PD101"]
    asked = replace(treatment("kahan", before.parameters), findings=diagnosis.findings)
    candidate = Candidate(treatment=asked, changes={})
    return judge(candidate, before, diagnosis, Scan(evidence=after, code=1, log=log))


def test_holds_when_the_illness_is_gone() -> None:
    assert verdict(evidence(1.0)) == ""


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (evidence, "PD101 frozen-parameter is still there"),
        (lambda _: evidence(0.5), "PD102 swallowed-update takes its place"),
        (lambda _: evidence(1.0, ended="failed"), "the edited program failed: ValueError: no"),
        (lambda _: evidence(1.0, steps=7), "made 7 optimizer steps instead of 20"),
        (lambda _: evidence(1.0, "another"), "no update of weight was seen"),
        (lambda _: replace(evidence(1.0), losses=((1, float("nan")),)), "the loss is not finite any more"),
        (lambda _: None, "the edited program failed: Killed"),
    ],
)
def test_does_not_hold_otherwise(after: object, reason: str) -> None:
    assert callable(after)
    assert reason in verdict(after(0.0), log="loading\nKilled")


def test_does_not_hold_when_another_parameter_falls_ill() -> None:
    other = replace(evidence(0.0, "other").parameters[0], optimizer=0)
    well = evidence(1.0)
    assert "PD101 frozen-parameter is new" in verdict(replace(well, parameters=(*well.parameters, other)))
