from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from precdoctor.evidence import Metric
from precdoctor.rules.coarse_loss import CoarseLoss
from tests.rules.exact import AT, run


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


def judged_metric(**changes: Any) -> list[Any]:
    values = {"format": "bfloat16", "place": AT, "values": (20.125,) * 8, "reductions": 1, **changes}
    return CoarseLoss.criterion(dataclasses.replace(run(), metrics=(Metric(**values),)))


def test_a_schedule_that_cannot_see_progress_is_a_warning() -> None:
    (finding,) = judged_metric()
    assert (finding.severity, finding.measured["ulp"]) == ("warning", 0.125)
    assert [x.place for x in finding.locations] == [AT]


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "float32"},
        {"format": ""},
        {"values": (20.125,) * 7},
        {"values": (0.0,) * 8},
        {"values": tuple(20 - i / 8 for i in range(8))},
        {"reductions": 0},
    ],
)
def test_a_schedule_that_can_is_silent(changes: dict[str, Any]) -> None:
    assert not judged_metric(**changes)
