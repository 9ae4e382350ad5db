from __future__ import annotations

import dataclasses
import math

import pytest

from precdoctor.evidence import GradientFlow, GradientLoss
from precdoctor.rules.mask_overflow import MaskOverflow
from precdoctor.rules.non_finite_origin import NonFiniteOrigin
from tests.rules.exact import LATER, non_finite, run

NAN = (1.0, 1.0, math.nan, math.nan, math.nan)
MASK = non_finite(mask=True, operation="add", reduction=False)


def test_a_mask_that_overflows_is_a_note() -> None:
    (finding,) = MaskOverflow.criterion(run(non_finite=(MASK,)))
    assert finding.severity == "note"


def test_a_mask_whose_rows_become_nan_is_an_error() -> None:
    site = non_finite(mask=True, operation="add", reduction=False, nan_passes=1, loss_passes=3)
    (finding,) = MaskOverflow.criterion(run(non_finite=(site,), losses=NAN))
    assert finding.severity == "error"


@pytest.mark.parametrize(("passes", "severity"), [(1, "note"), (2, "error")])
def test_a_mask_whose_nan_gets_past_a_finite_loss_is_an_error(passes: int, severity: str) -> None:
    site = non_finite(mask=True, operation="_to_copy", nan_at=LATER, nan_passes=9, gradient_passes=passes)
    (finding,) = MaskOverflow.criterion(run(non_finite=(site,)))
    assert finding.severity == severity
    assert "becomes NaN at train.py:20" in finding.message


def test_a_mask_that_overflows_before_a_loss_that_stays_nan_is_the_likely_origin() -> None:
    (finding,) = MaskOverflow.criterion(run(non_finite=(MASK,), losses=NAN))
    assert finding.severity == "error"
    assert "after 2 steps" in finding.message


def test_a_mask_is_not_to_blame_where_something_else_is() -> None:
    other = non_finite(operation="exp", reduction=False, loss_passes=3)
    (finding,) = MaskOverflow.criterion(run(non_finite=(MASK, other), losses=NAN))
    assert finding.severity == "note"


def test_other_overflows_are_no_masks() -> None:
    assert not MaskOverflow.criterion(run(non_finite=(non_finite(),)))


def test_what_overflows_of_gradients_is_told_by_another_rule() -> None:
    for mask in (True, False):
        evidence = run(non_finite=(non_finite(mask=mask, operation="add", reduction=False),))
        place = evidence.exactness.non_finite[0].place if evidence.exactness is not None else None
        loss = GradientLoss(kind="overflow", op="aten::add_", backward=False, place=place)
        told = dataclasses.replace(evidence, gradient_flow=GradientFlow(losses=(loss,)))
        assert any(rule.criterion(evidence) for rule in (MaskOverflow, NonFiniteOrigin))
        assert not any(rule.criterion(told) for rule in (MaskOverflow, NonFiniteOrigin))
