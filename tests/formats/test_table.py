from __future__ import annotations

import math

import pytest

from precdoctor.formats import BFLOAT16, FORMATS, Format, FormatError
from precdoctor.formats.table import describe, format_rows, format_table, spacing_row, spacing_table


def test_format_table_has_a_line_per_format() -> None:
    lines = format_table().splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(FORMATS)]] == [fmt.name for fmt in FORMATS]
    assert [row[0] for row in format_rows()] == [fmt.name for fmt in FORMATS]
    assert "bfloat16      16            8       0.0078125" in format_table()


def test_spacing_at_one_shows_both_half_ulps() -> None:
    assert spacing_row(BFLOAT16, 1.0) == ("bfloat16", 1.0, 0.99609375, 1.0078125, 2**-9, 2**-8, 2**-8)
    (line,) = (line for line in spacing_table(1.0).splitlines() if line.startswith("bfloat16"))
    assert line.split() == ["bfloat16", "1", "0.99609375", "1.0078125", "0.001953", "0.003906", "0.003906"]


@pytest.mark.parametrize("value", [0.0, -0.0, 1e6, 1e-30, math.inf, -math.inf, math.nan])
def test_spacing_table_says_nothing_of_what_has_no_spacing(value: float) -> None:
    lines = spacing_table(value).splitlines()
    assert len(lines) == 2 + len(FORMATS)
    assert ("-" in lines[2].split()) == (value == 0 or not math.isfinite(value))


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_describe_tells_the_range_of_each_format(fmt: Format) -> None:
    text = describe(fmt.name)
    assert text.startswith(fmt.name)
    assert f"exact up to {2**fmt.precision}" in text


def test_describe_refuses_an_unknown_name() -> None:
    with pytest.raises(FormatError, match="fp16"):
        describe("fp16")
