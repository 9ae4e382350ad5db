from __future__ import annotations

import pytest

from precdoctor.rules.swallowed_update import SwallowedUpdate
from tests.rules.build import evidence, norm, parameter, updates
from tests.rules.build import with_bench as benched
from tests.rules.build import with_group as grouped

judge = SwallowedUpdate.criterion


@pytest.mark.parametrize(
    ("edq", "severity"), [(0.96, None), (0.91, None), (0.88, "warning"), (0.71, "warning"), (0.68, "error")]
)
def test_warns_below_nine_tenths_and_errs_below_seven(edq: float, severity: str | None) -> None:
    found = judge(evidence(parameter(updates=updates(edq=edq, interval=(edq - 0.01, edq + 0.005)))))
    assert [f.severity for f in found] == ([severity] if severity else [])


def test_judges_by_the_upper_end_of_the_interval() -> None:
    assert judge(evidence(parameter(updates=updates(edq=0.5, interval=(0.05, 0.95))))) == []


def test_never_judges_by_the_share_of_lost_updates() -> None:
    assert judge(evidence(parameter(updates=updates(edq=1.0, lost_share=0.99)))) == []
    assert judge(evidence(parameter(updates=updates(edq=0.006, interval=(0.0, 0.01), lost_share=0.066))))


def test_leaves_frozen_parameters_to_pd101() -> None:
    assert judge(evidence(norm())) == []


def test_is_silent_about_float32_stochastic_rounding_and_kahan() -> None:
    loses = updates(edq=0.2, net_edq=1.0)
    assert judge(evidence(parameter(updates=loses, format="float32"))) == []
    assert judge(benched(evidence(parameter(updates=loses)), edq_small=1.009)) == []
    noisy = updates(edq=0.2, net_edq=0.2)
    assert judge(benched(evidence(parameter(updates=noisy)), edq_small=0.99, rounds_inside=True)) == []


def test_needs_enough_updates_of_a_size_that_matters() -> None:
    assert judge(evidence(parameter(updates=updates(edq=0.2, intended=199)))) == []
    assert judge(evidence(parameter(updates=updates(edq=0.2, relative_rms=5e-7)))) == []


def test_one_cause_is_one_finding_as_grave_as_its_gravest_parameter() -> None:
    (finding,) = judge(
        evidence(
            parameter("a", updates=updates(edq=0.85)), parameter("b", updates=updates(edq=0.23, bits=-1.0))
        )
    )
    assert finding.severity == "error"
    assert "EDQ 0.23 at the worst (b)" in finding.message
    assert finding.measured["worst_parameter"] == "b"


def test_waits_for_the_peak_of_a_warm_up() -> None:
    warming = {"lr_first": 1e-8, "lr_last": 3e-4, "lr_max": 3e-4}
    stopped = evidence(parameter(updates=updates(edq=0.3, bits=-1.0)), ended="stopped")
    assert judge(grouped(stopped, **warming, lr_future=((500, 3e-3),))) == []
    assert judge(grouped(stopped, **warming, lr_future=((500, 3.1e-4),)))
