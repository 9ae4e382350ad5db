from __future__ import annotations

import numpy as np
import pytest

from precdoctor.formats import BLOCK_FORMATS, BlockFormat
from precdoctor.formats.arrays import fake_quantize
from tests.reference import quantize as reference

every = pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name)


def spread() -> np.ndarray:
    """Return rows of 70 with ordinary numbers, one outlier, zeros, small whole numbers and magnitudes."""
    generator = np.random.default_rng(1)
    rows = generator.normal(0, 0.02, (5, 70))
    rows[1, 3] = 10.0
    rows[2] = 0.0
    rows[3] = generator.integers(-12, 13, 70) / 2
    rows[4] *= 2.0 ** generator.integers(-20, 20, 70)
    return rows.astype(np.float32).astype(np.float64)


@every
def test_round_trip_is_that_of_exact_fractions(fmt: BlockFormat) -> None:
    expected = reference.round_trip(fmt, spread().tolist())
    np.testing.assert_allclose(fake_quantize(spread(), fmt), expected, rtol=2**-22)


@every
def test_what_is_not_finite_takes_along_all_that_share_its_scale(fmt: BlockFormat) -> None:
    for bad in (np.inf, -np.inf, np.nan):
        x = spread()
        x[0, 0] = bad
        back = fake_quantize(x, fmt)
        assert np.isnan(back[0, :16]).all()
        assert np.isnan(back).all() == (fmt.has_tensor_scale or fmt.block == "tensor")


@every
def test_nothing_comes_back_from_nothing(fmt: BlockFormat) -> None:
    assert fake_quantize(np.zeros((0, 4)), fmt).shape == (0, 4)
    assert fake_quantize(np.zeros(()), fmt) == 0
