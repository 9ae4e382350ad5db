from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from precdoctor.checkpoints.bits import Farthest, Layout, layout_of, magnitudes, of_tensor, ulps_between
from tests.reference import checkpoints as twin

SMALL = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
ALL = (torch.float64, torch.float32, *SMALL)


def layout(dtype: torch.dtype) -> Layout:
    found = layout_of(dtype)
    assert found is not None
    return found


def every_value(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(twin.values_of(dtype), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", SMALL)
def test_distances_in_ulps_are_steps_through_the_table_of_all_values(dtype: torch.dtype) -> None:
    values = every_value(dtype)
    generator = torch.Generator().manual_seed(0)
    other = values[torch.randperm(len(values), generator=generator)]
    found = ulps_between(of_tensor(values, layout(dtype)), of_tensor(other, layout(dtype)), layout(dtype))
    assert found.tolist() == twin.ulps(values, other)


@pytest.mark.parametrize("dtype", SMALL[2:])
def test_distances_of_all_pairs_of_eight_bit_values(dtype: torch.dtype) -> None:
    values = every_value(dtype)
    a, b = values.repeat_interleave(len(values)), values.repeat(len(values))
    found = ulps_between(of_tensor(a, layout(dtype)), of_tensor(b, layout(dtype)), layout(dtype))
    assert found.tolist() == twin.ulps(a, b)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.floats(width=32, allow_nan=False))
def test_float32_distances_are_differences_of_ordered_integers(x: float, y: float) -> None:
    def place(value: float) -> int:
        bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
        return -(bits - (1 << 31)) if bits >> 31 else bits

    a, b = (of_tensor(torch.tensor([v], dtype=torch.float32), layout(torch.float32)) for v in (x, y))
    assert ulps_between(a, b, layout(torch.float32)).tolist() == [abs(place(x) - place(y))]


def test_zeros_of_both_signs_are_no_distance_apart() -> None:
    zeros = of_tensor(torch.tensor([0.0, -0.0]), layout(torch.float32))
    assert ulps_between(zeros, zeros[::-1].copy(), layout(torch.float32)).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", ALL)
@given(data=st.data())
def test_the_farthest_is_the_largest_of_all_finite_distances(dtype: torch.dtype, data: st.DataObject) -> None:
    fmt = layout(dtype)
    arrays = st_np.arrays(fmt.unsigned, st.shared(st.integers(1, 40), key="length"))
    a, b = data.draw(arrays), data.draw(arrays)
    first, second = magnitudes(a, fmt), magnitudes(b, fmt)
    fine = (first < fmt.beyond) & (second < fmt.beyond)
    found = Farthest(fmt, 40)(a, b, first, second, finite=bool(fine.all()))
    assert found == int(ulps_between(a[fine], b[fine], fmt).max(initial=0))


@pytest.mark.parametrize("dtype", ALL)
def test_layouts_know_infinity_nan_and_one(dtype: torch.dtype) -> None:
    fmt = layout(dtype)
    special = of_tensor(
        torch.tensor([1.0, float("inf"), float("nan"), fmt.format.max], dtype=torch.float64).to(dtype), fmt
    )
    assert int(special[0]) == fmt.one
    assert int(special[3]) & fmt.magnitude == fmt.beyond - 1
    assert int(special[2]) & fmt.magnitude >= fmt.beyond
    if fmt.format.has_inf:
        assert int(special[1]) == fmt.infinity == fmt.beyond
    else:
        assert fmt.infinity is None


def test_decoding_is_what_torch_does() -> None:
    values = torch.tensor([1.5, -2.25, 1e-40, float("inf")], dtype=torch.bfloat16)
    fmt = layout(torch.bfloat16)
    assert torch.equal(fmt.decode(of_tensor(values, fmt)), values.double())
    assert np.array_equal(fmt.encode(values.double()), of_tensor(values, fmt))


def test_integers_have_no_layout() -> None:
    assert layout_of(torch.int64) is None
