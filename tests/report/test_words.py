from __future__ import annotations

import math

import pytest

from precdoctor.evidence import Run
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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.37, "2.370"),
        (0.0, "0.000"),
        (0.01234, "0.0123"),
        (51234.0, "5.12e+04"),
        (math.nan, "nan"),
        (None, "-"),
    ],
)
def test_losses_have_comparable_decimals(value: float | None, text: str) -> None:
    assert words.loss(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-0.3123, 0.0042, "-0.312 ± 0.004"),
        (12.0, 3.0, "+12 ± 3"),
        (0.25, None, "+0.25"),
        (0.25, 0.0, "+0.25"),
        (0.0, 0.0, "0"),
        (math.nan, 0.1, "nan"),
        (None, 0.1, "-"),
    ],
)
def test_a_difference_has_no_more_digits_than_its_error(
    value: float | None, error: float | None, text: str
) -> None:
    assert words.difference(value, error) == text


def test_ratios_and_bytes_read_naturally() -> None:
    assert (words.ratio(1.118), words.ratio(None)) == ("1.12×", "-")
    assert (words.byte_count(16.0), words.byte_count(16.13), words.byte_count(None)) == ("16", "16.1", "-")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("train.py", "train.py"),
        ("src/my.package/run", "src/my.package/run"),
        ("trl", "trl"),
        ("my_package.train", "-m my_package.train"),
        ("my file.py", "'my file.py'"),
    ],
)
def test_a_program_is_named_as_a_command_takes_it(target: str, text: str) -> None:
    assert words.again(Run(target=target)) == text
