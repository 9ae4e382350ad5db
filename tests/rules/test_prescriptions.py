from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Evidence, Parameter
from precdoctor.rules.descent import edq_at, restoring_factor
from precdoctor.rules.finding import Prescription
from precdoctor.rules.frozen_parameter import FrozenParameter
from precdoctor.rules.one_sided_update import OneSidedUpdate
from precdoctor.rules.swallowed_update import SwallowedUpdate
from tests.rules.build import evidence, lost, norm, parameter, updates, weight


def prescribed(given: Evidence, rule: Any = FrozenParameter) -> dict[str, Prescription]:
    (finding,) = rule.criterion(given)
    return {p.remedy: p for p in finding.prescriptions}


def matrix(name: str = "outer.weight", **changes: Any) -> Parameter:
    return parameter(name, **{"shape": (64, 64), **changes})


def test_the_factor_is_solved_from_the_recorded_headroom() -> None:
    ill = norm()
    cures = prescribed(evidence(ill))
    assert ill.updates is not None
    factor = cures["group-lr"].settings["factor"]
    assert factor == restoring_factor(ill.updates.headroom_energy)
    assert edq_at(ill.updates.headroom_energy, float(factor)) == pytest.approx(1.0, abs=0.101)
    assert cures["reinit"].settings == {"factor": pytest.approx(1 / float(factor))}
    assert (
        "the smallest factor from which on the recorded headroom has EDQ within 0.1 of 1"
        in cures["group-lr"].why
    )


def test_the_cures_that_need_no_setting_have_none() -> None:
    cures = prescribed(evidence(norm()))
    assert all(
        not cures[name].settings for name in ("autocast", "master-weights", "stochastic-rounding", "kahan")
    )


def test_a_few_norms_can_be_kept_in_float32() -> None:
    cures = prescribed(
        evidence(norm("a.norm.weight", module="RMSNorm"), norm("b.norm.weight", module="RMSNorm"), matrix())
    )
    island = cures["float32-island"]
    assert island.rank == 5
    assert island.why.startswith(
        "keep these 2 RMSNorms in float32 (+256 bytes of weights): 3 % of the run's parameters"
    )


def test_one_module_is_named_by_its_class() -> None:
    partly = lost(edq=0.5, interval=(0.4, 0.6), lost_share=0.8, never_moved_share=0.1)
    cures = prescribed(evidence(norm(module="RMSNorm", updates=partly), matrix()), SwallowedUpdate)
    assert cures["float32-island"].why.startswith("keep this RMSNorm in float32")


@pytest.mark.parametrize(
    "given",
    [
        evidence(norm(), parameter("other", shape=(64,))),
        evidence(norm(), parameter("norm.bias"), matrix()),
        evidence(norm("block.scale"), parameter("block.inner.weight"), matrix()),
        evidence(norm("scale"), matrix()),
        evidence(norm(module=""), matrix()),
    ],
    ids=["too many", "half a module", "holds healthy modules", "the whole model", "no module"],
)
def test_no_island_where_it_is_not_a_few_whole_modules(given: Evidence) -> None:
    assert "float32-island" not in prescribed(given)


def test_drifting_weights_get_no_island_and_no_scaling() -> None:
    drifting = updates(
        edq=0.95, lost_share=0.9, ups_intended=500, downs_intended=500, ups_applied=28, downs_applied=129
    )
    at_one = weight(abs_median=1.0, mean_first=1.0, mean_last=0.99, power_of_two_share=0.6)
    cures = prescribed(evidence(norm(updates=drifting, weight=at_one), matrix()), OneSidedUpdate)
    assert list(cures) == ["autocast", "master-weights", "stochastic-rounding", "kahan"]
