from __future__ import annotations

import dataclasses
import math

import pytest

from precdoctor.evidence import Evidence, Gradient, Run, Scaler, Updates, from_json, to_json
from precdoctor.rules import diagnose, select
from tests.rules.build import evidence, group, lost, norm, optimizer, parameter, updates, weight

NAMES = [
    "gradients flow",
    "the optimizer steps and holds the model's parameters",
    "the learning rate is in range",
    "updates survive the weight's format",
    "optimizer state survives its format",
    "forward values stay finite and exact",
    "loss scaling is alive",
    "quantizers pass gradients",
]


def signs(given: Evidence) -> dict[str, str]:
    return {sign.name: sign.status for sign in diagnose(given).vital_signs}


def test_a_frozen_norm_is_ill() -> None:
    diagnosis = diagnose(evidence(norm(), parameter()))
    assert diagnosis.verdict == "ill"
    assert diagnosis.summary.startswith("norm.weight (bfloat16) is frozen: |w| = 1, half-ULP 0.00195 down")
    assert diagnosis.summary.endswith("bits short (PD101 frozen-parameter, caused at train.py:10).")
    assert {s.name for s in diagnosis.vital_signs if s.status == "ill"} == {
        "updates survive the weight's format"
    }


def test_a_good_run_is_healthy() -> None:
    diagnosis = diagnose(evidence(parameter()))
    assert diagnosis.verdict == "healthy"
    assert diagnosis.findings == ()


def test_the_vital_signs_come_in_their_order() -> None:
    assert [sign.name for sign in diagnose(evidence(parameter())).vital_signs] == NAMES


def test_does_not_call_healthy_what_was_not_seen() -> None:
    nothing = Evidence(run=Run(target="train.py", ended="failed", error="ValueError: no data"))
    diagnosis = diagnose(nothing)
    assert diagnosis.verdict == "unknown"
    assert diagnosis.summary == "No optimizer step was seen: the script failed (ValueError: no data)."
    assert {sign.status for sign in diagnosis.vital_signs} == {"unknown"}
    assert all(sign.text for sign in diagnosis.vital_signs)


def test_steps_without_any_gradient_are_not_healthy() -> None:
    still = parameter(
        gradient=Gradient(format="float32", present=5, all_zero=5), updates=Updates(replay="none")
    )
    diagnosis = diagnose(evidence(still))
    assert diagnosis.verdict == "unknown"
    assert signs(evidence(still))["gradients flow"] == "unknown"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_not_healthy_though_no_rule_names_it(loss: float) -> None:
    diagnosis = diagnose(evidence(parameter(), losses=((1, 0.5), (2, loss))))
    assert diagnosis.verdict == "unknown"
    assert "not finite since step 2" in diagnosis.summary


def test_a_loss_that_recovered_is_no_illness() -> None:
    assert diagnose(evidence(parameter(), losses=((1, math.inf), (2, 0.5)))).verdict == "healthy"


def test_weights_that_are_not_finite_are_not_healthy() -> None:
    gone = parameter(weight=weight(non_finite=3))
    assert signs(evidence(gone))["forward values stay finite and exact"] == "ill"
    assert diagnose(evidence(gone)).verdict == "unknown"


@pytest.mark.parametrize(
    ("rms", "status"), [(1e-8, "ill"), (1e-6, "ok"), (1e-3, "ok"), (0.9, "ok"), (1.1, "ill")]
)
def test_the_learning_rate_is_judged_by_what_a_step_does(rms: float, status: str) -> None:
    given = evidence(parameter(format="float32", updates=updates(relative_rms=rms)))
    assert signs(given)["the learning rate is in range"] == status


@pytest.mark.parametrize(("numel", "status"), [(9, "ok"), (11, "unknown")])
def test_a_small_part_of_the_weights_does_not_speak_for_the_rest(numel: int, status: str) -> None:
    unknown = parameter(
        "embedding.weight", shape=(numel - 1,), updates=Updates(replay="none", why_not="sparse")
    )
    assert signs(evidence(parameter("bias", shape=(1,)), unknown))["the learning rate is in range"] == status


def test_a_learning_rate_of_zero_is_ill() -> None:
    still = evidence(parameter(), optimizers=(optimizer(groups=(group(lr_max=0.0),)),))
    assert signs(still)["the learning rate is in range"] == "ill"


def test_one_resting_group_is_no_illness() -> None:
    two = evidence(parameter(), optimizers=(optimizer(groups=(group(), group(lr_max=0.0))),))
    assert signs(two)["the learning rate is in range"] == "ok"


def test_float32_weights_survive_whatever_they_lose() -> None:
    given = evidence(parameter(format="float32", updates=lost()))
    assert diagnose(given).verdict == "healthy"


def test_updates_that_were_not_replayed_are_unknown() -> None:
    given = evidence(parameter(updates=Updates(replay="none", why_not="no lr")))
    assert signs(given)["updates survive the weight's format"] == "unknown"
    diagnosis = diagnose(given)
    assert diagnosis.verdict == "unknown"
    assert "but not whether updates survive the weight's format" in diagnosis.summary


@pytest.mark.parametrize(
    ("scalers", "status"),
    [
        ((), "ok"),
        ((Scaler(enabled=False, scale=1.0),), "ok"),
        ((Scaler(enabled=True, scale=65536.0),), "ok"),
        ((Scaler(enabled=True, scale=0.5),), "ill"),
        ((Scaler(enabled=True, scale=math.nan),), "ill"),
    ],
)
def test_loss_scaling_is_judged_by_its_scale(scalers: tuple[Scaler, ...], status: str) -> None:
    assert signs(evidence(parameter(), scalers=scalers))["loss scaling is alive"] == status


def test_quantizers_are_unknown_without_a_backward_pass() -> None:
    assert signs(evidence(parameter(), backward=None))["quantizers pass gradients"] == "unknown"


def test_selects_by_id_beginning_of_id_and_name() -> None:
    given = evidence(norm(), parameter("w", gradient=Gradient(absent=20)))
    findings = diagnose(given).findings
    assert [f.rule for f in findings] == ["PD101", "PD201"]
    assert [f.rule for f in select(findings, ["PD1"])] == ["PD101"]
    assert [f.rule for f in select(findings, ["missing-gradient"])] == ["PD201"]
    assert [f.rule for f in select(findings, ignore=["pd201"])] == ["PD101"]
    assert diagnose(given, ignore=["PD1", "PD2"]).verdict == "healthy"


def test_findings_come_gravest_first() -> None:
    given = evidence(
        parameter("a", cast=None, updates=updates(edq=0.85)),
        parameter("b", gradient=Gradient(absent=20)),
        parameter("c", gradient=Gradient(format="float32", present=30, all_zero=30)),
    )
    assert [f.severity for f in diagnose(given).findings] == ["error", "warning", "note"]


def test_saved_evidence_gets_the_same_diagnosis() -> None:
    given = evidence(norm(), parameter())
    assert diagnose(from_json(to_json(given))) == diagnose(given)


def test_odd_numbers_break_no_rule() -> None:
    odd = updates(edq=math.nan, interval=(math.nan, math.nan), relative_rms=math.inf, lost_share=math.nan)
    strange = dataclasses.replace(
        parameter(),
        updates=odd,
        weight=weight(abs_median=math.nan, mean_first=math.nan),
        format="no-such-format",
    )
    for fmt in ("bfloat16", "no-such-format"):
        diagnose(evidence(dataclasses.replace(strange, format=fmt), parameter("p", optimizer=7, group=9)))
