"""Which doses follow from findings."""

from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Backward, Gradient, Quantizer
from precdoctor.remedies import REMEDIES, Dose
from precdoctor.remedies.master_weights import MasterWeightsRemedy
from precdoctor.remedies.ste import StraightThrough
from precdoctor.rules import Finding, Prescription, Severity, Subject
from precdoctor.treat.plan import by_hand, estimated_bytes, has_low_format, plan, reference
from tests.rules.build import evidence, norm, parameter

SEVERED = Quantizer(parameter="w", kind="quantizer", numel=64, format="float32", route="cut")


def finding(rule: str, subjects: str, severity: Severity = "error", **remedies: Any) -> Finding:
    """Return a finding on some parameters that prescribes remedies, with their settings."""
    cures = enumerate(remedies.items(), start=1)
    return Finding(
        rule=rule,
        name=rule,
        severity=severity,
        subjects=tuple(Subject(kind="parameter", name=name) for name in subjects.split()),
        message="",
        prescriptions=tuple(
            Prescription(remedy=name.replace("_", "-"), rank=rank, why="", settings=settings)
            for rank, (name, settings) in cures
        ),
    )


def test_a_remedy_for_the_whole_run_is_tried_once_for_all_who_ask() -> None:
    planned = plan([finding("PD101", "a b", autocast={}), finding("PD102", "c", autocast={}, kahan={})])
    assert [item.label for item in planned] == ["autocast", "kahan"]
    assert (planned[0].rules, planned[0].subjects) == (("PD101", "PD102"), ("a", "b", "c"))
    assert planned[0].dose == Dose(remedy="autocast")
    assert (planned[1].rules, planned[1].subjects) == (("PD102",), ("c",))


def test_a_remedy_for_some_parameters_is_tried_for_each_finding_with_its_settings() -> None:
    planned = plan(
        [finding("PD101", "a", group_lr={"factor": 30.0}), finding("PD102", "b", group_lr={"factor": 3.0})]
    )
    doses = {(item.dose.settings["factor"], item.dose.subjects): item.label for item in planned}
    assert doses == {
        (30.0, ("a",)): "group-lr x30",
        (10.0, ("a",)): "group-lr x10 (PD101)",  # the usual advice, for both
        (3.0, ("b",)): "group-lr x3",
        (10.0, ("b",)): "group-lr x10 (PD102)",
    }


def test_the_same_dose_asked_for_twice_is_tried_once() -> None:
    twice = [finding(rule, "a", beta2={"beta2": 0.95}) for rule in ("PD104", "PD105")]
    (planned,) = plan(twice)
    assert planned.rules == ("PD104", "PD105")


def test_only_chooses_remedies_whether_or_not_anything_asks() -> None:
    findings = [finding("PD101", "a b", autocast={}, kahan={})]
    assert [item.label for item in plan(findings, ["kahan"])] == ["kahan"]
    (unasked,) = plan(findings, ["float32-state"])
    assert (unasked.rules, unasked.subjects) == (("PD101",), ("a", "b"))
    (of_the_healthy,) = plan([], ["float32-state"])
    assert (of_the_healthy.rules, of_the_healthy.subjects) == ((), ())


@pytest.mark.parametrize("remedy", [remedy.id for remedy in REMEDIES])
def test_every_remedy_can_be_tried_unasked(remedy: str) -> None:
    assert {item.dose.remedy for item in plan([], [remedy])} == {remedy}


def test_edits_by_hand_are_not_planned_but_named() -> None:
    findings = [finding("PD202", "a", reconnect={}, autocast={}), finding("PD203", "b", reconnect={})]
    assert by_hand(findings) == {"reconnect": ("PD202", "PD203")}
    assert [item.label for item in plan(findings)] == ["autocast"]


def test_layers_to_keep_are_tried_worst_first_in_growing_sets() -> None:
    worst_first = finding("PD603", "a b c d e f", keep_float32={"layers": "f,b,a,c,d,e"})
    planned = plan([worst_first])
    assert [item.dose.settings["layers"] for item in planned] == ["f", "f,b", "f,b,a,c,d,e"]
    assert [item.label for item in planned] == [
        "keep-float32 f",
        "keep-float32 f and 1 more",
        "keep-float32 f and 5 more",
    ]
    assert [item.label for item in plan([finding("PD603", "a", keep_float32={"layers": "a"})])] == [
        "keep-float32 a"
    ]


def test_cures_of_quantizers_are_compared_with_a_run_without_any() -> None:
    quantized = evidence(parameter("w", format="float32"), quantizers=(SEVERED,))
    bypassed = Dose(remedy="float32", settings={"quantizers": "bypassed"})
    assert reference(quantized, [finding("PD601", "w", ste={})], ("w",)) == bypassed
    assert reference(quantized, [finding("PD102", "w", eps={})], ("w",)) is None
    plain = evidence(parameter("w", format="float32"))
    assert reference(plain, [finding("PD201", "w", ste={})], ("w",)) is None
    assert reference(evidence(norm()), [finding("PD101", "norm.weight", kahan={})], ()) == Dose(
        remedy="float32"
    )
    rounded = evidence(parameter("w", format="float32"), backward=Backward(zero_nodes=("RoundBackward0",)))
    assert reference(rounded, [finding("PD202", "w", ste={})], ("w",)) == bypassed


def test_float32_is_worth_a_run_only_where_a_patient_is_below_it() -> None:
    seen = evidence(norm("low"), parameter("high", format="float32"))
    assert has_low_format(seen, ())
    assert has_low_format(seen, ("low", "high"))
    assert not has_low_format(seen, ("high",))


def test_the_estimate_counts_the_treated_share_of_all_elements() -> None:
    seen = evidence(norm("low"), parameter("high", format="float32", shape=(192,)))
    extra = MasterWeightsRemedy.extra_bytes(16, {})
    dose = Dose(remedy="master-weights")
    assert estimated_bytes(8.0, seen, MasterWeightsRemedy, dose) == 8.0 + extra / 4
    awake = evidence(parameter("cut", format="float32", gradient=Gradient(absent=9)), norm("other"))
    expected = 4.0 + StraightThrough.extra_bytes(32) / 2
    assert estimated_bytes(4.0, awake, StraightThrough, Dose(remedy="ste")) == expected
    other = Dose(remedy="master-weights", subjects=("high",))
    assert estimated_bytes(8.0, seen, MasterWeightsRemedy, other) == 8.0
