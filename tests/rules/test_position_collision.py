from __future__ import annotations

import pytest

from precdoctor.rules.inexact_integer import InexactInteger
from precdoctor.rules.position_collision import PositionCollision
from tests.rules.lost import CAST, USED, lost, run, use


def test_positions_whose_sine_is_off_collide() -> None:
    (finding,) = PositionCollision.criterion(run(lost(use())))
    assert finding.severity == "warning"
    assert [(x.place, x.role) for x in finding.locations] == [(CAST, "cause"), (USED, "site")]
    assert [(s.kind, s.name) for s in finding.subjects] == [("op", "forward"), ("module", "rope")]
    assert "of 768 different ones 449 are left" in finding.message
    assert "off by up to 2 rad" in finding.message


@pytest.mark.parametrize(("phase", "ill"), [(0.09, False), (0.1, True)])
def test_a_phase_that_is_hardly_off_is_healthy(phase: float, ill: bool) -> None:
    """A day of the year in bfloat16 is off by a day, and its sine by 0.017."""
    assert bool(PositionCollision.criterion(run(lost(use(error=phase))))) == ill


@pytest.mark.parametrize("kind", ["comparison", "difference", "index"])
def test_a_sequence_is_ill_by_other_uses_as_well(kind: str) -> None:
    assert PositionCollision.criterion(run(lost(use(kind, 1.0))))
    assert not PositionCollision.criterion(run(lost(use(kind, 0.01), sequence=False)))


@pytest.mark.parametrize(("left", "ill"), [(700, False), (600, True)])
@pytest.mark.parametrize("kind", ["bias", "feature"])
def test_a_fifth_must_coincide_where_only_their_size_matters(kind: str, left: int, ill: bool) -> None:
    assert bool(PositionCollision.criterion(run(lost(use(kind), distinct_after=left)))) == ill


def test_positions_that_autocast_casts_on_their_way_to_a_weight_are_like_other_data() -> None:
    assert not PositionCollision.criterion(run(lost(use("feature"), how="autocast")))
    assert PositionCollision.criterion(run(lost(use(), how="autocast")))


@pytest.mark.parametrize(("error", "ill"), [(0.24, False), (0.25, True)])
def test_a_mean_by_probabilities_may_be_off_by_less_than_a_quarter(error: float, ill: bool) -> None:
    findings = PositionCollision.criterion(run(lost(use("mean", error), how="autocast")))
    assert bool(findings) == ill
    if ill:
        assert "means of them by probabilities are off by 0.25 of the distance" in findings[0].message
    assert not PositionCollision.criterion(run(lost(use("mean", error), sequence=False)))


def test_numbers_that_keep_apart_are_healthy() -> None:
    assert not PositionCollision.criterion(run(lost(use(), distinct_after=768, changed_share=0.0)))


def test_one_line_has_one_of_the_two_illnesses() -> None:
    for item in (lost(use()), lost(use(), format="float32"), lost(use(), sequence=False)):
        assert len(PositionCollision.criterion(run(item)) + InexactInteger.criterion(run(item))) == 1
