"""Which layer departs: the bulk and the whole of its errors have to be larger than the twin's."""

from __future__ import annotations

import math

import pytest

from precdoctor.comparison.layers import first_departure
from precdoctor.comparison.result import Layer


def layer(name: str, sqnr: float, expected: float, excess: float, *, overflows: bool = False) -> Layer:
    return Layer(name=name, sqnr_db=sqnr, expected_db=expected, excess_db=excess, overflows=overflows)


@pytest.mark.parametrize(
    ("found", "departs"),
    [
        (layer("as its twin", 50, 51, 1), False),
        (layer("one huge activation, rounded unluckily", 40, 54, 1), False),
        (layer("a sparse output", 50, 52, math.inf), False),
        (layer("digits lost in all elements", 20, 50, 30), True),
        (layer("its twin is exact", 50, math.inf, math.inf), True),
        (layer("exact, as its twin", math.inf, math.inf, 0), False),
        (layer("as exact as float32 itself", 120, math.inf, math.inf), False),
        (layer("an overflow that the twin has too", math.nan, math.nan, math.nan, overflows=True), True),
    ],
    ids=lambda value: value.name if isinstance(value, Layer) else "",
)
def test_a_layer_departs_if_rounding_does_not_explain_it(found: Layer, departs: bool) -> None:
    assert (first_departure([layer("before", 60, 60, 0), found]) is found) == departs


def test_the_first_is_named() -> None:
    first, second = layer("first", 20, 50, 30), layer("second", 10, 50, 40)
    assert first_departure([first, second]) is first
    assert first_departure([]) is None
