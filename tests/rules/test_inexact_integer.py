from __future__ import annotations

import pytest

from precdoctor.rules.inexact_integer import InexactInteger
from tests.rules.lost import CAST, lost, run, use


def severities(*args: object, **changes: object) -> list[str]:
    return [f.severity for f in InexactInteger.criterion(run(lost(*args, **changes)))]  # type: ignore[arg-type]


def test_times_in_float32_are_inexact() -> None:
    item = lost(
        use("periodic", 0.107), format="float32", sequence=False, distinct_before=4000, distinct_after=984
    )
    (finding,) = InexactInteger.criterion(run(item))
    assert finding.severity == "warning"
    assert finding.locations[0].place == CAST
    assert "their remainder is off by up to 0.107 of the period" in finding.message


@pytest.mark.parametrize(
    ("kind", "error", "ill"),
    [
        ("periodic", 1 / 65, False),
        ("periodic", 1 / 63, True),
        ("index", 0.5, True),
        ("comparison", 1.0, True),
        ("difference", 0.04, False),
        ("difference", 0.06, True),
        ("offset", 0.06, True),
        ("bias", 8.0, False),
        ("factor", 8.0, False),
    ],
)
def test_what_depends_on_the_digits_is_a_warning(kind: str, error: float, ill: bool) -> None:
    assert severities(use(kind, error), sequence=False) == (["warning"] if ill else [])


def test_a_feature_is_a_note_where_many_coincide() -> None:
    assert severities(use("feature", 8.0), sequence=False, one_per_row=True) == ["note"]
    assert severities(use("feature", 8.0), sequence=False, one_per_row=True, distinct_after=760) == []


def test_a_sound_in_bfloat16_is_healthy() -> None:
    assert severities(use("feature", 64.0), sequence=False) == []


def test_infinity_is_a_warning_whatever_becomes_of_it() -> None:
    assert severities(use("infinity"), sequence=False, overflowed=3, distinct_after=700) == ["warning"]


def test_infinities_that_are_still_told_from_the_rest_are_no_lost_integers() -> None:
    mask = {"overflowed": 105, "distinct_before": 2, "distinct_after": 2, "sequence": False}
    assert severities(use("infinity"), **mask) == []


def test_numbers_that_nobody_saw_exact_are_judged_by_their_use() -> None:
    given = {"how": "given", "before": "", "distinct_before": 0, "changed_share": 0.0, "format": "float32"}
    assert severities(use("periodic", 0.1), sequence=False, **given) == ["warning"]
