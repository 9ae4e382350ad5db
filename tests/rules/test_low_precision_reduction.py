from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import LossySum, NonFinite
from precdoctor.rules.finding import Finding
from precdoctor.rules.low_precision_reduction import LowPrecisionReduction
from tests.rules.exact import AT, LATER, non_finite, run


def judged(*sites: NonFinite) -> list[Finding]:
    return LowPrecisionReduction.criterion(run(non_finite=sites))


def test_an_overflow_of_which_nothing_came_is_a_note() -> None:
    assert [f.severity for f in judged(non_finite())] == ["note"]


@pytest.mark.parametrize("where", ["layer", "loss", "gradient", "parameter", "logarithm"])
@pytest.mark.parametrize(("passes", "severity"), [(1, "note"), (2, "error")])
def test_inf_that_becomes_a_wrong_number_is_an_error_where_it_gets_there(
    where: str, passes: int, severity: str
) -> None:
    (finding,) = judged(non_finite(reached=((where, passes),), reached_at=LATER, reached_error=1.0))
    assert finding.severity == severity
    assert finding.locations[0].place == AT
    assert "65,504" in finding.message


@pytest.mark.parametrize(("passes", "severity"), [(9, "note"), (10, "error")])
def test_inf_that_python_reads_most_of_the_time_is_an_error(passes: int, severity: str) -> None:
    (finding,) = judged(non_finite(read_passes=passes))
    assert finding.severity == severity


def test_an_exponential_is_no_reduction() -> None:
    assert not judged(non_finite(operation="exp", reduction=False))
    assert not judged(non_finite(mask=True))


def test_modules_and_operations_of_one_line_are_one_finding() -> None:
    sites = [
        non_finite(),
        non_finite(operation="sum", reached=(("layer", 20),), modules=("head.norm",), largest=1e6),
    ]
    (finding,) = judged(*sites)
    assert finding.severity == "error"
    assert [s.name for s in finding.subjects] == ["norm", "head.norm"]


@pytest.mark.parametrize(("error", "severity"), [(0.2, "warning"), (0.6, "error")])
def test_a_swamped_sum_is_as_grave_as_what_it_reaches_is_wrong(error: float, severity: str) -> None:
    site = LossySum(
        place=AT,
        function="returns",
        operation="add",
        format="bfloat16",
        passes=20,
        error=0.1,
        reached=(("loss", 20),),
        reached_error=error,
    )
    (finding,) = LowPrecisionReduction.criterion(run(lossy_sums=(site,)))
    assert finding.severity == severity
    assert [s.name for s in finding.subjects] == ["returns"]


def test_a_swamped_sum_that_reaches_nothing_is_silent() -> None:
    site = LossySum(place=AT, operation="add", format="bfloat16", passes=20, error=0.5)
    assert not LowPrecisionReduction.criterion(run(lossy_sums=(site,)))


@pytest.mark.parametrize(
    ("changes", "ill"),
    [({}, True), ({"indexed_passes": 9}, False), ({"graded": False}, False)],
)
def test_a_sum_by_index_that_has_lost_its_terms_in_many_places(changes: dict[str, Any], ill: bool) -> None:
    values = {"indexed_passes": 10, "graded": True, **changes}
    site = LossySum(place=AT, operation="index_add", format="bfloat16", passes=20, error=0.07, **values)
    found = LowPrecisionReduction.criterion(run(lossy_sums=(site,)))
    assert [f.severity for f in found] == ["warning"] * ill
    assert all("is off by 7 %" in f.message and "gradient goes through it" in f.message for f in found)


@pytest.mark.parametrize(
    ("changes", "ill"),
    [({}, True), ({"nats_passes": 9}, False), ({"graded": False}, False), ({"nats_passes": 0}, False)],
)
def test_a_recursion_of_logarithms_that_is_off_by_a_factor(changes: dict[str, Any], ill: bool) -> None:
    values = {"nats": 6.3, "nats_passes": 10, "graded": True, **changes}
    site = LossySum(place=AT, operation="add", format="bfloat16", passes=20, error=0.04, **values)
    found = LowPrecisionReduction.criterion(run(lossy_sums=(site,)))
    assert [f.severity for f in found] == ["warning"] * ill
    assert all("a factor of 545" in f.message for f in found)
