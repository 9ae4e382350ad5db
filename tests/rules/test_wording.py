from __future__ import annotations

import pytest

from precdoctor.rules.wording import count, number, percent, several, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (2**-9, "0.00195"),
        (2**-8, "0.00391"),
        (2.9e-4, "2.9e-4"),
        (1e-8, "1e-8"),
        (0.0, "0"),
        (1234.5, "1,234"),
        (65536.0, "6.6e4"),
        (float("nan"), "nan"),
        (None, "unknown"),
    ],
)
def test_numbers_have_three_digits_at_most(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100 %"),
        (0.9999999, "> 99.99 %"),
        (0.998, "99.80 %"),
        (0.5, "50 %"),
        (0.001, "0.10 %"),
        (0.0, "0 %"),
    ],
)
def test_all_and_nothing_are_said_only_when_meant(share: float, text: str) -> None:
    assert percent(share) == text


def test_names_are_shortened_with_their_number() -> None:
    assert several(["a"]) == "a"
    assert several(["a", "b"]) == "a and b"
    assert several(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_counts_and_sizes_carry_their_noun_and_unit() -> None:
    assert count(1, "parameter") == "1 parameter"
    assert count(9216, "update") == "9,216 updates"
    assert (size(512), size(18_900), size(118e6)) == ("512 bytes", "18.9 kB", "118 MB")
