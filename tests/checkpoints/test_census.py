from __future__ import annotations

import pytest
import torch

from precdoctor.checkpoints import look
from precdoctor.checkpoints.look import look_at
from precdoctor.evidence import Stored
from tests.checkpoints.build import entry


@pytest.fixture(params=[64, 1 << 19], ids=["many parts", "one part"], autouse=True)
def _part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "PART", request.param)


def seen(tensor: torch.Tensor) -> Stored:
    return look_at(entry(tensor))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]
)
def test_counts_what_is_not_finite(dtype: torch.dtype) -> None:
    values = torch.linspace(-3, 3, 300)
    values[[3, 70, 299]], values[[5, 80]] = float("nan"), torch.tensor([float("inf"), -float("inf")])
    stored = seen(values.to(dtype))
    assert (stored.nan, stored.infinite) == (3, 2)
    assert stored.largest == values.to(dtype).double().nan_to_num(0, 0, 0).abs().max()


def test_e4m3fn_has_nan_and_no_infinity() -> None:
    stored = seen(torch.tensor([1.0, 448.0, float("nan"), -float("nan")]).to(torch.float8_e4m3fn))
    assert (stored.nan, stored.infinite, stored.largest) == (2, 0, 448.0)


@pytest.mark.parametrize(
    ("narrow", "name"),
    [(torch.bfloat16, "bfloat16"), (torch.float16, "float16"), (torch.float8_e4m3fn, "e4m3fn"),
     (torch.float8_e5m2, "e5m2")],
)  # fmt: skip
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_sees_a_narrower_format_in_disguise(narrow: torch.dtype, name: str, wide: torch.dtype) -> None:
    assert seen(torch.randn(400).to(narrow).to(wide)).fits == name


def test_float64_may_be_float32_in_disguise() -> None:
    assert seen(torch.randn(400).double()).fits == "float32"


def test_values_beyond_the_range_of_float16_are_not_float16() -> None:
    values = torch.randn(400).to(torch.float16).float()
    values[-1] = 2.0**17
    assert seen(values).fits == ""


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(400),
        torch.ones(400),
        torch.zeros(400),
        2.0 ** torch.arange(-20, 20),
        torch.cat([torch.randn(399).bfloat16().float(), torch.tensor([1.0 + 2.0**-20])]),
        torch.randn(4).bfloat16().float(),
    ],
    ids=["random", "ones", "zeros", "powers of two", "one full value", "too few"],
)
def test_what_is_no_disguise(values: torch.Tensor) -> None:
    assert seen(values).fits == ""


def test_bfloat16_weights_are_not_in_disguise() -> None:
    assert seen(torch.randn(400).bfloat16()).fits == ""


def test_counts_ones_of_one_dimension_only() -> None:
    ones = torch.ones(100)
    ones[7] = 1.0 + 2.0**-23
    assert seen(ones).ones == 99
    assert seen(ones.view(10, 10)).ones is None
    assert seen(torch.ones(100)).constant == 1.0
    assert seen(ones).constant is None


def test_a_constant_of_nan_is_no_value() -> None:
    assert seen(torch.full((100,), float("nan"))).constant is None


def test_knows_tables_and_masks() -> None:
    frequencies = 10000.0 ** -(torch.arange(0, 200, 2) / 200)
    assert seen(frequencies).monotonic
    assert not seen(frequencies.flip(0).roll(1)).monotonic
    assert not seen(torch.randn(100)).monotonic
    assert seen(torch.full((20, 20), -float("inf")).triu(1)).is_mask
    assert not seen(torch.randn(20, 20)).is_mask
    assert not seen(torch.zeros(20, 20)).is_mask
    late = torch.full((20, 20), 2.0).triu(1)
    late[-1, 0] = 3.0
    assert not seen(late).is_mask


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_what_is_no_format_is_known_by_its_dtype(dtype: torch.dtype) -> None:
    stored = seen(torch.ones(5).to(dtype))
    assert stored.format == str(dtype).removeprefix("torch.")
    assert (stored.nan, stored.ones, stored.fits) == (0, None, "")


@pytest.mark.parametrize("shape", [(0,), (), (3, 0)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    stored = seen(torch.ones(shape))
    assert stored.shape == shape
    assert not stored.nan
