from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precdoctor.checkpoints import look
from precdoctor.checkpoints.look import compare
from precdoctor.evidence import Travel
from precdoctor.formats import BFLOAT16, headroom_bits
from tests.checkpoints.build import entry
from tests.reference import checkpoints as twin


def travel(a: torch.Tensor, b: torch.Tensor) -> Travel:
    found = compare(entry(a), entry(b)).travel
    assert found is not None
    return found


@pytest.mark.parametrize("part", [128, 1 << 19])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_distances_agree_with_the_table_of_all_values(
    dtype: torch.dtype, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "PART", part)
    torch.manual_seed(0)
    a = (torch.randn(1000) * 0.1).to(dtype)
    b = torch.where(torch.rand(1000) < 0.4, a.float(), a.float() + 0.02 * torch.randn(1000)).to(dtype)
    found, steps = travel(a, b), twin.ulps(a, b)
    moved = sorted(n for n, same in zip(steps, same_bits(a, b), strict=True) if not same)
    assert found.identical == 1000 - len(moved)
    assert found.ulps_max == max(moved)
    assert found.sampled == len(moved)
    assert found.ulps_median == moved[math.ceil(len(moved) / 2) - 1]
    for index, count in enumerate(found.ulps.counts):
        low = 2 ** (found.ulps.low + index)
        assert count == sum(low <= n < 2 * low for n in moved)
    assert found.ulps.total == sum(n > 0 for n in moved)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> list[bool]:
    same: list[bool] = (a.view(torch.uint8) == b.view(torch.uint8)).view(len(a), -1).all(1).tolist()
    return same


@given(st.lists(st.tuples(st.floats(-8, 8, width=16), st.floats(-8, 8, width=16)), min_size=1, max_size=50))
def test_headroom_of_the_travel_is_that_of_each_element(pairs: list[tuple[float, float]]) -> None:
    a, b = (torch.tensor(side).bfloat16() for side in zip(*pairs, strict=True))
    found = travel(a, b)
    assert found.identical == sum(same_bits(a, b))
    moved = [(x, y) for x, y, same in zip(a.tolist(), b.tolist(), same_bits(a, b), strict=True) if not same]
    bits = [headroom_bits(BFLOAT16, x, y - x) for x, y in moved]
    bins = sorted(math.floor(max(min(each, 64.0), -64.0) / 0.5) for each in bits)
    expected = [0.0] * (bins[-1] - bins[0] + 1) if bins else []
    for each in bins:
        expected[each - bins[0]] += 1
    assert list(found.headroom_bits.counts) == expected
    assert not bins or found.headroom_bits.low == bins[0] / 2


def test_one_step_up_from_one_is_one_bit() -> None:
    a = torch.ones(64).bfloat16()
    found = travel(a, torch.full((64,), 1 + 2.0**-7).bfloat16())
    assert (found.ulps_max, found.ulps_median, found.identical) == (1, 1, 0)
    assert (found.headroom_bits.low, found.headroom_bits.counts) == (1.0, (64.0,))
    assert found.half_ulp_passed == 2.0**-8
    assert found.half_ulp_low == 2.0**-9  # towards zero
    assert found.ups_share == 1.0
    assert found.typical == 2.0**-7


def test_a_large_tensor_is_sampled_and_its_counts_are_exact() -> None:
    torch.manual_seed(0)
    a = torch.randn(1 << 19).bfloat16()
    b = a.clone()
    b[::3] = (a[::3].float() * 1.05).bfloat16()
    b[-1] = 3e38  # one far element, at the end
    found = travel(a, b)
    assert found.identical == int((a.view(torch.int16) == b.view(torch.int16)).sum())
    assert found.ulps_max == max(twin.ulps(a[-1:], b[-1:])) > 10_000
    assert 1000 < found.sampled < 1 << 16
    assert found.ulps_median == pytest.approx(
        sorted(n for n in twin.ulps(a, b) if n)[found.compared // 6], abs=1
    )


def test_what_is_not_finite_has_no_distance() -> None:
    a = torch.randn(100)
    b = a.clone()
    b[3], b[5] = float("nan"), a[5].nextafter(torch.tensor(9.0))
    found = travel(a, b)
    assert (found.identical, found.ulps_max) == (98, 1)


def test_the_same_nan_is_identical() -> None:
    a = torch.tensor([float("nan"), 1.0])
    assert compare(entry(a), entry(a.clone())).identical


def test_rounding_to_a_lower_format_is_told_from_training() -> None:
    a = torch.randn(1000)
    rounded = travel(a, a.bfloat16())
    assert rounded.rounded
    assert (rounded.format, rounded.identical_share) == ("bfloat16", 1.0)
    assert rounded.rounding_share == pytest.approx(float((a.bfloat16().float() != a).double().mean()))
    error = (a.bfloat16().double() - a.double()).square().sum() / a.double().square().sum()
    assert rounded.rounding_error == pytest.approx(math.sqrt(error))
    trained = travel(a, (a + 0.1).bfloat16())
    assert not trained.rounded
    assert trained.identical_share < 0.1


def test_a_wider_second_file_is_compared_in_the_first_ones_format() -> None:
    a = torch.randn(1000).bfloat16()
    found = travel(a, a.float())
    assert (found.format, found.identical, found.rounded, found.rounding_share) == (
        "bfloat16",
        1000,
        False,
        0.0,
    )


def test_other_shapes_are_not_compared() -> None:
    pair = compare(entry(torch.ones(3)), entry(torch.ones(4)))
    assert (pair.travel, pair.identical) == (None, None)


@pytest.mark.parametrize(("other", "identical"), [(torch.arange(5), True), (torch.arange(1, 6), False)])
def test_integers_are_compared_by_their_bits(other: torch.Tensor, identical: bool) -> None:
    pair = compare(entry(torch.arange(5)), entry(other))
    assert (pair.travel, pair.identical) == (None, identical)


def test_tensors_without_elements_are_identical() -> None:
    assert travel(torch.empty(0), torch.empty(0)).identical_share == 1.0
