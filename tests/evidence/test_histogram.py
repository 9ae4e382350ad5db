"""Histograms and quantiles read from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precdoctor.evidence import Histogram

VALUES = st.lists(st.integers(-20, 19), min_size=1, max_size=60)


def histogram(values: list[int]) -> Histogram:
    return Histogram(low=-20, width=1, counts=tuple(float(values.count(v)) for v in range(-20, 20)))


@given(values=VALUES, share=st.floats(0.01, 1.0))
def test_a_quantile_is_within_a_bin_of_the_sorted_values(values: list[int], share: float) -> None:
    found = histogram(values).quantile(share)
    exact = sorted(values)[min(int(share * len(values) - 1e-9), len(values) - 1)]
    assert found is not None
    assert exact <= found <= exact + 1


@given(values=VALUES, edge=st.integers(-25, 25))
def test_the_share_below_a_bins_edge_is_exact(values: list[int], edge: int) -> None:
    assert histogram(values).share_below(edge) == pytest.approx(sum(v < edge for v in values) / len(values))


@given(values=VALUES)
def test_trimming_loses_nothing(values: list[int]) -> None:
    whole, trimmed = histogram(values), histogram(values).trimmed()
    assert trimmed.total == whole.total
    assert trimmed.counts[0] > 0
    assert trimmed.counts[-1] > 0
    assert trimmed.quantile(0.5) == pytest.approx(whole.quantile(0.5))


def test_nothing_has_no_quantile() -> None:
    empty = Histogram(low=0, width=1, counts=(0.0, 0.0))
    assert empty.quantile(0.5) is None
    assert empty.share_below(1) == 0
    assert empty.trimmed().counts == ()
