from __future__ import annotations

import pytest

from precdoctor.report import words
from precdoctor.rules import Subject


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.9999, ">99.9 %"), (0.0001, "<0.1 %"), (0.391, "39.1 %"), (None, "-")],
)
def test_percent_says_all_or_none_only_where_meant(share: float | None, text: str) -> None:
    assert words.percent(share) == text


def test_control_characters_in_a_name_are_shown_and_not_obeyed() -> None:
    assert words.printable("a\x1b[31mb\nc") == r"a\x1b[31mb\nc"


@pytest.mark.parametrize(
    ("names", "text"),
    [(["a"], "a"), (["a", "b"], "a and 1 more"), ([], ""), (["a"] * 1201, "a and 1,200 more")],
)
def test_many_subjects_read_as_the_first_and_a_number(names: list[str], text: str) -> None:
    assert words.subjects([Subject(kind="parameter", name=name) for name in names]) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.31, "0.3 s"), (21.4, "21 s"), (200.0, "3 min 20 s")])
def test_durations_read_naturally(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_an_edq_near_zero_shows_enough_digits_to_tell_it_from_frozen() -> None:
    assert (words.edq(0.004), words.edq(0.614), words.edq(None)) == ("0.004", "0.61", "-")


def test_a_long_name_keeps_its_layer_and_its_kind() -> None:
    short = words.short_name("model.layers.11.feed_forward.projection.norm.weight", 30)
    assert short == "model.layer…ection.norm.weight"
    assert len(short) == 30
