from __future__ import annotations

import pytest
import torch

from precdoctor.numerics import BINADE_BINS, LOWEST_BINADE, binade_index, binades
from tests.numerics.patterns import DTYPES, every_value
from tests.reference import numerics as reference


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float64], ids=str)
def test_every_value_is_counted_in_its_binade(dtype: torch.dtype) -> None:
    x = every_value(dtype)
    counts, expected = binades(x).tolist(), reference.binades(x)
    assert len(counts) == BINADE_BINS
    assert counts[0] == expected.pop("zero")
    assert counts[-1] == expected.pop("not finite", 0)
    assert {LOWEST_BINADE + i: n for i, n in enumerate(counts[1:-1]) if n} == expected


def test_float64_beyond_the_range_of_float32_counts_as_zero_or_not_finite() -> None:
    x = torch.tensor([1e-300, -(2.0**-150), 2.0**-149, 1.0, 2.0**128, -1e300], dtype=torch.float64)
    assert binade_index(x).tolist() == [0, 0, 1, 150, BINADE_BINS - 1, BINADE_BINS - 1]


def test_counts_of_two_tensors_add_up() -> None:
    x = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(binades(x[0]) + binades(x[1]), binades(x))
