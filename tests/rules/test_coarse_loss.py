from __future__ import annotations

import pytest

from precdoctor.rules.coarse_loss import CoarseLoss
from tests.rules.exact import run


@pytest.mark.parametrize("form", ["float32", "float64", ""])
def test_a_wide_loss_may_stand_still(form: str) -> None:
    assert not CoarseLoss.criterion(run(loss_format=form, losses=(2.0,) * 100))


@pytest.mark.parametrize(("same", "severity"), [(80, "note"), (81, "warning")])
def test_a_loss_of_16_bits_that_hardly_ever_changes_is_a_warning(same: int, severity: str) -> None:
    changing = tuple(2 + (i + 1) / 64 for i in range(100 - same))
    (finding,) = CoarseLoss.criterion(run(loss_format="bfloat16", losses=(2.0,) * same + changing))
    assert finding.severity == severity
    assert finding.measured["ulp"] == 2**-6


def test_a_few_losses_say_nothing() -> None:
    (finding,) = CoarseLoss.criterion(run(loss_format="float16", losses=(2.0,) * 19))
    assert finding.severity == "note"


def test_a_loss_of_zero_is_not_coarse() -> None:
    (finding,) = CoarseLoss.criterion(run(loss_format="float16", losses=(0.0,) * 100))
    assert finding.severity == "note"
