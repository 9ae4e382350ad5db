"""Smaller initial values, where they are a constant that no healthy parameter shares."""

from __future__ import annotations

import pytest

from precdoctor.fix.sources import NoSafeEdit
from tests.fix.build import edited, parameter, save, treatment


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("torch.ones(dim)", "torch.ones(dim) * 0.1"),
        ("torch.full((dim,), 1.0)", "torch.full((dim,), 1.0) * 0.1"),
        ("torch.ones_like( x )", "torch.ones_like( x ) * 0.1"),
    ],
)
def test_multiplies_the_constant(value: str, expected: str) -> None:
    save(f"w = nn.Parameter({value})  # scale\n")
    asked = treatment("reinit", (parameter(created="nn.Parameter"),), settings={"factor": 0.1})
    assert edited(asked) == f"w = nn.Parameter({expected})  # scale\n"


@pytest.mark.parametrize("line", ["w = nn.Parameter(torch.randn(4))", "norm = nn.RMSNorm(64)"])
def test_names_the_line_where_the_values_are_no_constant(line: str) -> None:
    save(f"{line}\n")
    asked = treatment("reinit", (parameter(created=line),), settings={"factor": 0.1})
    with pytest.raises(NoSafeEdit, match=r"initial values of weight by 0\.1 by hand: made at train\.py:1"):
        edited(asked)


def test_leaves_a_line_that_makes_healthy_parameters_too() -> None:
    save("w = nn.Parameter(torch.ones(4))\n")
    parameters = (parameter("a", created="w ="), parameter("b", created="w ="))
    asked = treatment("reinit", parameters, ill=("a",), settings={"factor": 0.1})
    with pytest.raises(NoSafeEdit, match="which b shares"):
        edited(asked)
