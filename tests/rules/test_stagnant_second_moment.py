from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import State
from precdoctor.rules.stagnant_second_moment import StagnantSecondMoment
from tests.rules.build import CAST, LR, evidence, parameter

judge = StagnantSecondMoment.criterion


def moment(name: str = "weight", **changes: Any) -> State:
    values: dict[str, Any] = {
        "key": "exp_avg_sq",
        "role": "second moment",
        "format": "bfloat16",
        "beta": 0.999,
        "edq_down": 0.0,
        "over_exact": 18.8,
    }
    return State(parameter=name, **{**values, **changes})


@pytest.mark.parametrize(
    ("over", "severity"), [(18.8, "error"), (16.0, "error"), (4.0, "warning"), (3.9, "note"), (None, "note")]
)
def test_is_as_grave_as_the_steps_are_too_small(over: float | None, severity: str) -> None:
    (finding,) = judge(evidence(parameter(), states=(moment(over_exact=over),)))
    assert finding.severity == severity


@pytest.mark.parametrize(
    ("over", "ahead", "severity"),
    [
        (1.5, 100.0, "warning"),
        (1.4, 1e4, "note"),
        (2.2, 99.0, "note"),
        (2.2, None, "note"),
        (17.0, 1e4, "error"),
    ],
)
def test_a_short_run_shows_where_the_exact_average_goes(
    over: float, ahead: float | None, severity: str
) -> None:
    (finding,) = judge(evidence(parameter(), states=(moment(over_exact=over, over_gradient=ahead),)))
    assert finding.severity == severity
    assert ("times the last squared gradients" in finding.message) == (severity == "warning")


def test_says_by_how_much_the_steps_are_too_small() -> None:
    (finding,) = judge(evidence(parameter(), states=(moment(),)))
    assert "beta2 = 0.999 takes 0.001 of it away per step" in finding.message
    assert "18.8 times the exact average" in finding.message
    assert "4.34x too small" in finding.message


def test_blames_the_cast_when_the_state_follows_the_weight_else_the_optimizer() -> None:
    (follows,) = judge(evidence(parameter(), states=(moment(),)))
    assert [(location.role, location.place) for location in follows.locations] == [
        ("cause", CAST),
        ("site", LR),
    ]
    (own,) = judge(evidence(parameter(format="float32", cast=None), states=(moment(),)))
    assert [(location.role, location.place) for location in own.locations] == [("cause", LR)]


def test_is_silent_about_moments_that_fall() -> None:
    assert judge(evidence(parameter(), states=(moment(edq_down=0.9),))) == []
    assert judge(evidence(parameter(), states=(moment(beta=0.99),))) == []


def test_is_silent_about_first_moments_and_float32() -> None:
    assert judge(evidence(parameter(), states=(moment(role="first moment"),))) == []
    assert judge(evidence(parameter(), states=(moment(format="float32"),))) == []


def test_one_optimizer_is_one_finding_and_harmless_states_are_apart() -> None:
    found = judge(
        evidence(
            *(parameter(n) for n in "abc"),
            states=(moment("a"), moment("b", over_exact=5.0), moment("c", over_exact=1.0)),
        )
    )
    assert [(f.severity, [s.name for s in f.subjects]) for f in found] == [
        ("error", ["a", "b"]),
        ("note", ["c"]),
    ]


def test_prescribes_a_beta_that_can_fall() -> None:
    (finding,) = judge(evidence(parameter(), states=(moment(),)))
    beta = next(p for p in finding.prescriptions if p.remedy == "beta2")
    assert beta.why.startswith("beta2 of 0.99 or less")
    assert beta.settings == {"beta2": 0.99}
