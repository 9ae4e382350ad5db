from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from precdoctor.evidence import Cancellation as Site
from precdoctor.rules.cancellation import Cancellation
from precdoctor.rules.finding import Finding
from tests.rules.exact import AT, LATER, SOURCE, cancellation, run


def judged(*sites: Site) -> list[Finding]:
    return Cancellation.criterion(run(cancellations=sites))


def test_damage_that_reaches_nothing_is_silent() -> None:
    assert not judged(cancellation())


@pytest.mark.parametrize("where", ["layer", "loss", "gradient", "parameter", "logarithm"])
@pytest.mark.parametrize(("passes", "ill"), [(1, False), (2, True)])
def test_damage_counts_where_it_gets_to_and_more_than_once(where: str, passes: int, ill: bool) -> None:
    assert bool(judged(cancellation(reached=((where, passes),)))) == ill


@pytest.mark.parametrize(("error", "severity"), [(0.3, "warning"), (0.6, "error")])
def test_severity_is_the_error_of_what_it_reaches(error: float, severity: str) -> None:
    (finding,) = judged(cancellation(reached=(("loss", 20),), reached_error=error))
    assert finding.severity == severity


def test_a_derivative_of_an_ill_conditioned_problem_is_a_note() -> None:
    (finding,) = judged(cancellation(reached=(("gradient", 20),), reached_error=0.6, derivative=True))
    assert finding.severity == "note"
    assert finding.message.startswith("the derivative of variance at train.py")


def test_the_line_that_brings_the_error_in_is_the_cause() -> None:
    born = dataclasses.replace(SOURCE, line=5)
    (finding,) = judged(cancellation(reached=(("layer", 20),), births=(born,)))
    assert [(x.place, x.role) for x in finding.locations] == [
        (SOURCE, "cause"),
        (born, "cause"),
        (AT, "site"),
        (LATER, "site"),
    ]
    assert [s.name for s in finding.subjects] == ["variance"]
    assert [p.remedy for p in finding.prescriptions] == ["subtract-first", "float64-op"]


def ratio(**changes: object) -> Site:
    """Return a difference of log-probabilities that is noise."""
    values: dict[str, object] = {"source": "_log_softmax", "source_format": "bfloat16", "graded": True}
    values |= {"probabilities": True}
    return cancellation(**{**values, **changes})


def test_a_difference_of_log_probabilities_that_is_noise_is_a_warning() -> None:
    (finding,) = judged(ratio())
    assert finding.severity == "warning"
    assert finding.prescriptions[-1].remedy == "float32-op"
    assert "compute log_softmax" in finding.prescriptions[-1].why


def test_the_logarithm_of_a_ratio_that_is_noise_is_a_warning() -> None:
    (finding,) = judged(ratio(probabilities=False, ratio=True, source="mul"))
    assert finding.severity == "warning"
    assert not judged(ratio(probabilities=False, source="mul"))


def test_what_was_cast_is_to_be_left_as_it_was() -> None:
    (finding,) = judged(ratio(source="_to_copy"))
    assert "leave what is rounded to bfloat16" in finding.prescriptions[-1].why
    assert finding.prescriptions[-1].why.endswith("in float32")


@pytest.mark.parametrize(
    "changes",
    [
        {"graded": False},
        {"source_format": "float32"},
        {"probabilities": False},
        {"error": 0.4},
        {"passes": 9},
    ],
)
def test_it_is_none_without_gradient_or_in_float32_or_where_it_is_rare(changes: dict[str, object]) -> None:
    assert not judged(ratio(**changes))


def test_a_factorization_that_fails_on_what_is_damaged_is_a_warning() -> None:
    sound = run(cancellations=(cancellation(last_step=100),))
    failed = dataclasses.replace(
        sound.run, steps=100, ended="failed", error="torch._C._LinAlgError: linalg.cholesky: ..."
    )
    (finding,) = Cancellation.criterion(dataclasses.replace(sound, run=failed))
    assert finding.severity == "warning"
    earlier = run(cancellations=(cancellation(last_step=50),))
    assert not Cancellation.criterion(dataclasses.replace(earlier, run=failed))


@pytest.mark.parametrize(
    ("changes", "ill"),
    [
        ({}, True),
        ({"evaluations": 2}, True),
        ({"evaluations": 1}, False),
        ({"evaluations": 0}, False),
        ({"reached_error": 0.4}, False),
        ({"graded": True}, False),
        ({"reached": ()}, False),
    ],
)
def test_one_pass_is_enough_in_most_evaluations(changes: dict[str, Any], ill: bool) -> None:
    values = {"passes": 1, "reached": (("read", 1),), "evaluations": 3, **changes}
    evidence = run(cancellations=(cancellation(**values),), evaluations=3)
    assert bool(Cancellation.criterion(evidence)) == ill


def test_how_far_a_loss_has_come_may_be_logged_in_an_evaluation() -> None:
    values = {"passes": 1, "reached": (("read", 1),), "evaluations": 3, "repeated": True}
    assert not Cancellation.criterion(run(cancellations=(cancellation(**values),), evaluations=3))


@pytest.mark.parametrize(("times", "ill"), [(7, False), (8, True)])
def test_steps_that_go_by_a_difference_are_a_warning(times: int, ill: bool) -> None:
    values = {"passes": 1, "reached": (("read", 1),), "repeated": True}
    site = cancellation(**values, steered=times, steered_at=LATER)
    found = Cancellation.criterion(run(cancellations=(site,), passes=1))
    assert [f.severity for f in found] == ["warning"] * ill
    assert all(
        "added to tensors at train.py:20 is scaled with that (8 times seen)" in f.message for f in found
    )


@pytest.mark.parametrize(("passes", "ill"), [(1, False), (2, True)])
def test_a_schedule_is_the_same_in_each_pass(passes: int, ill: bool) -> None:
    site = cancellation(reached=(("schedule", passes),), error=0.0, share=0.016, reached_error=0.016)
    found = Cancellation.criterion(run(cancellations=(site,), passes=1000))
    assert [f.severity for f in found] == ["warning"] * ill
