from __future__ import annotations

from typing import Any

from precdoctor.evidence import Parameter
from precdoctor.rules.one_sided_update import OneSidedUpdate
from tests.rules.build import evidence, parameter, updates, weight
from tests.rules.build import with_bench as benched

judge = OneSidedUpdate.criterion


def drifting(**changes: Any) -> Parameter:
    """Return the norm of the document's second option, lr 3e-3: 28 ups and 129 downs arrived."""
    values: dict[str, Any] = {
        "edq": 0.23,
        "lost_share": 0.988,
        "intended": 12800,
        "ups_intended": 6942,
        "downs_intended": 5857,
        "ups_applied": 28,
        "downs_applied": 129,
        "drift_intended": 0.0138,
        "drift_applied": -0.0062,
    }
    at = changes.pop(
        "weight", weight(abs_median=1.0, mean_first=1.0, mean_last=0.994, power_of_two_share=0.39)
    )
    name = changes.pop("name", "norm.weight")
    return parameter(name, weight=at, updates=updates(**{**values, **changes}))


def test_finds_the_drift_of_a_norm_at_a_larger_rate() -> None:
    (finding,) = judge(evidence(drifting()))
    assert finding.severity == "warning"
    assert "28 increases and 129 decreases arrived where 54 % of the intended updates were" in finding.message
    assert finding.measured["z"] < -9  # type: ignore[operator]


def test_never_prescribes_another_learning_rate() -> None:
    (finding,) = judge(evidence(drifting()))
    assert {p.remedy for p in finding.prescriptions}.isdisjoint({"group-lr", "reinit"})


def test_is_silent_when_the_directions_arrive_as_intended() -> None:
    assert judge(evidence(drifting(ups_applied=85, downs_applied=72))) == []
    assert judge(evidence(drifting(ups_applied=277, downs_applied=412))) == [], "0.14 off: lr 5e-3"


def test_is_silent_about_few_moves() -> None:
    assert judge(evidence(drifting(ups_applied=0, downs_applied=19))) == []
    assert judge(evidence(drifting(ups_applied=0, downs_applied=20)))


def test_is_silent_away_from_the_edge_of_a_binade() -> None:
    elsewhere = weight(abs_median=0.1, mean_first=0.1001, power_of_two_share=0.02)
    assert judge(evidence(drifting(weight=elsewhere))) == []


def test_finds_weights_that_all_started_at_one_and_left_it() -> None:
    left = weight(abs_median=0.99, mean_first=1.0, power_of_two_share=0.05)
    assert judge(evidence(drifting(weight=left)))


def test_quotes_the_arithmetic_of_the_edge_that_the_weights_have_left() -> None:
    left = weight(abs_median=0.984, mean_first=1.0, power_of_two_share=0.05)
    (finding,) = judge(evidence(drifting(weight=left)))
    assert "at |w| = 1 a move towards zero has to exceed 0.00195, one away from it 0.00391" in finding.message
    assert finding.measured["edge"] == 1.0


def test_only_drift_towards_zero_comes_from_the_edge() -> None:
    assert judge(evidence(drifting(ups_applied=129, downs_applied=28))) == []
    negative = weight(abs_median=1.0, mean_first=-1.0, power_of_two_share=0.5)
    assert judge(evidence(drifting(weight=negative, ups_applied=129, downs_applied=12)))


def test_is_silent_where_only_one_side_was_meant_or_nothing_was_lost() -> None:
    assert judge(evidence(drifting(ups_intended=12700, downs_intended=100))) == []
    assert judge(evidence(drifting(lost_share=0.05))) == []


def test_is_silent_about_stochastic_rounding() -> None:
    assert judge(benched(evidence(drifting()), edq_small=0.99)) == []


def test_counts_parameters_of_one_cast_together() -> None:
    (finding,) = judge(evidence(drifting(name="a"), drifting(name="b", downs_applied=140)))
    assert finding.message.startswith("2 parameters in bfloat16 drift one-sidedly: 28 increases and 140")
