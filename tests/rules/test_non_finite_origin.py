from __future__ import annotations

import dataclasses
import math

import pytest

from precdoctor.evidence import NonFinite, NonFiniteGradient, Place
from precdoctor.rules.finding import Finding
from precdoctor.rules.non_finite_origin import NonFiniteOrigin
from tests.rules.build import parameter, weight
from tests.rules.exact import AT, LATER, non_finite, run

NAN = (1.0, 1.0, math.nan, math.nan, math.nan)


def judged(*sites: NonFinite, losses: tuple[float, ...] = (1.0,) * 10) -> list[Finding]:
    return NonFiniteOrigin.criterion(run(losses=losses, non_finite=sites))


def test_an_overflow_that_does_no_harm_is_a_note() -> None:
    (finding,) = judged(non_finite(operation="exp", reduction=False))
    assert finding.severity == "note"


def test_what_is_masked_out_later_is_silent() -> None:
    assert not judged(non_finite(kind="undefined", nan_at=AT, nan_passes=20))


@pytest.mark.parametrize("kind", ["overflow", "underflow", "undefined"])
def test_the_operation_that_makes_the_loss_nan_is_an_error(kind: str) -> None:
    site = non_finite(kind=kind, operation="log", reduction=False, nan_at=LATER, loss_passes=1)
    (finding,) = judged(site, losses=NAN)
    assert finding.severity == "error"
    assert finding.locations[0].place == AT
    assert [s.name for s in finding.subjects] == ["norm"]
    assert "NaN comes of it at train.py:20" in finding.message


@pytest.mark.parametrize(("passes", "severity"), [(1, "note"), (2, "error"), (20, "error")])
def test_losses_left_out_now_and_then_are_handled_and_many_are_not(passes: int, severity: str) -> None:
    (finding,) = judged(non_finite(operation="exp", reduction=False, loss_passes=passes))
    assert finding.severity == severity


def test_nan_that_a_loss_leaves_out_and_its_gradients_do_not_is_an_error() -> None:
    assert not judged(non_finite(kind="undefined", nan_at=AT, nan_passes=20, gradient_passes=1))
    (finding,) = judged(non_finite(kind="undefined", nan_at=AT, nan_passes=20, gradient_passes=5))
    assert finding.severity == "error"
    assert "the loss is finite, its gradients are not" in finding.message


@pytest.mark.parametrize(("passes", "severity"), [(1, "note"), (2, "error")])
def test_wrong_finite_numbers_count_where_they_get_to_a_layer(passes: int, severity: str) -> None:
    site = non_finite(operation="exp", reduction=False, reached=(("layer", passes),), reached_error=1.0)
    (finding,) = judged(site)
    assert finding.severity == severity


@pytest.mark.parametrize(
    ("operation", "changes", "severity"),
    [
        ("_to_copy", {"saved_at": LATER}, "warning"),
        ("copy", {"loaded_at": LATER}, "error"),
        ("_to_copy", {"saved_at": AT, "loaded_at": LATER}, "error"),
        ("exp", {"saved_at": LATER}, "note"),  # a perplexity among what is logged
        ("_to_copy", {}, "note"),
    ],
)
def test_what_a_cast_makes_infinite_counts_in_a_checkpoint(
    operation: str, changes: dict[str, Place], severity: str
) -> None:
    (finding,) = judged(non_finite(operation=operation, reduction=False, **changes))
    assert finding.severity == severity
    assert finding.locations[0].place == AT
    assert ("module at train.py:20" in finding.message) == (severity == "error")


def test_sums_and_masks_are_the_business_of_other_rules() -> None:
    assert not judged(non_finite(), non_finite(mask=True, reduction=False))


def test_a_loss_that_stays_nan_without_an_origin_says_since_when() -> None:
    (finding,) = judged(losses=NAN)
    assert finding.severity == "error"
    assert "after 2 steps" in finding.message
    assert not judged(losses=(1.0, math.nan, math.nan, 1.0))


def test_an_overflow_of_another_kind_may_be_the_origin() -> None:
    assert not judged(non_finite(mask=True), losses=NAN)


def test_sites_on_one_line_are_one_finding() -> None:
    sites = [non_finite(operation=name, reduction=False, loss_passes=20) for name in ("exp", "div")]
    assert len(judged(*sites)) == 1


def of_gradient(**changes: int) -> NonFiniteGradient:
    values = {"first_step": 7, "passes": 1, "steps": 1, **changes}
    return NonFiniteGradient(place=AT, function="distance", node="SqrtBackward0", operation="div", **values)


def test_a_gradient_that_is_not_finite_names_the_operation_that_has_no_derivative() -> None:
    evidence = run(losses=NAN, non_finite_gradients=(of_gradient(),))
    (finding,) = NonFiniteOrigin.criterion(evidence)  # the loss that is NaN ever after has its reason
    assert finding.severity == "error"
    assert "the derivative of Sqrt at train.py" in finding.message
    assert [(where.place, where.role) for where in finding.locations] == [(AT, "cause")]
    assert [s.name for s in finding.subjects] == ["distance"]


def test_a_gradient_that_no_step_was_taken_with_is_silent() -> None:
    assert NonFiniteOrigin.criterion(run(non_finite_gradients=(of_gradient(steps=0),))) == []


FAILED = {
    "ended": "failed",
    "error": "RuntimeError: probability tensor contains either `inf`, `nan` or element < 0",
}


@pytest.mark.parametrize(
    ("changes", "last_step", "severity"),
    [
        (FAILED, 99, "error"),
        (FAILED, 98, "note"),
        ({**FAILED, "error": "ValueError: info is missing"}, 99, "note"),
        ({"ended": "finished", "error": ""}, 99, "note"),
    ],
)
def test_a_script_that_fails_right_after_it_tells_what_came_of_it(
    changes: dict[str, str], last_step: int, severity: str
) -> None:
    seen = run(non_finite=(non_finite(kind="underflow", reduction=False, last_step=last_step),))
    seen = dataclasses.replace(seen, run=dataclasses.replace(seen.run, steps=100, **changes))  # type: ignore[arg-type]
    (finding,) = NonFiniteOrigin.criterion(seen)
    assert finding.severity == severity


@pytest.mark.parametrize(
    ("kind", "spoiled", "severity"),
    [("underflow", 4, "error"), ("underflow", 0, "note"), ("undefined", 4, "")],
)
def test_weights_that_are_not_finite_at_the_end_are_what_came_of_it(
    kind: str, spoiled: int, severity: str
) -> None:
    ill = parameter("head.weight", weight=weight(non_finite=spoiled))
    seen = dataclasses.replace(run(non_finite=(non_finite(kind=kind, reduction=False),)), parameters=(ill,))
    found = NonFiniteOrigin.criterion(seen)
    assert [f.severity for f in found] == ([severity] if severity else [])
    assert all("head.weight holds inf or NaN" in f.message for f in found if severity == "error")
