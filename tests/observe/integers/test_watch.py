"""Integers that lose digits are followed to what depends on them; what does not depend on them is no use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from precdoctor.doctor import Doctor
from precdoctor.evidence import LostIntegers
from precdoctor.observe.integers.lost import integral, is_sequence, loss_between
from tests.reference.integers import BITS, loss


def seen(act: Callable[[], Any]) -> tuple[LostIntegers, ...]:
    with Doctor(probe=True) as doctor:
        act()
    return doctor.evidence().integers


def uses(act: Callable[[], Any]) -> dict[str, float]:
    return {use.kind: use.error for item in seen(act) for use in item.uses}


@pytest.mark.parametrize("format", BITS)
@given(st.lists(st.integers(-(2**30), 2**30), min_size=1, max_size=40))
def test_loses_what_exact_arithmetic_says(format: str, values: list[int]) -> None:
    source = torch.tensor(values)
    found = loss_between(source, source.to(getattr(torch, format)))
    before, after, changed, error = loss(values, format)
    if format == "float16" and max(map(abs, values)) > 60_000:
        return  # infinity is another matter
    if not changed:
        assert found is None
    else:
        assert found is not None
        assert (found.distinct_before, found.distinct_after) == (before, after)
        assert (found.changed, found.error) == (changed, error)


def test_overflow_to_infinity_is_counted() -> None:
    source = torch.tensor([1, 70_000, 20_240_131])
    found = loss_between(source, source.half())
    assert found is not None
    assert found.overflowed == 2


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (torch.arange(100), True),
        (torch.arange(300, 0, -3), True),
        (torch.arange(50)[:, None].expand(50, 3), True),
        (torch.arange(50)[None].expand(3, 50), True),
        (torch.randint(0, 1000, (100,)), False),
        (torch.full((100,), 7), False),
        (torch.cartesian_prod(torch.arange(50), torch.arange(50)), True),
        (torch.cartesian_prod(torch.arange(50), torch.arange(50)).flip(-1), True),
        (torch.cartesian_prod(torch.arange(12), torch.arange(9), torch.arange(8)), True),
        (torch.cartesian_prod(torch.arange(50), torch.arange(7)), False),
        (torch.cartesian_prod(torch.arange(50), torch.randperm(50)), False),
        (torch.randint(0, 1000, (100, 2)), False),
        (torch.ones(100, 2), False),
        (torch.arange(50).repeat(3), False),
        (torch.arange(4), False),
        (torch.arange(64).reshape(8, 8) ** 2, False),
    ],
)
def test_a_sequence_has_equal_distances(numbers: Tensor, expected: bool) -> None:
    assert is_sequence(numbers) == expected


def test_columns_of_integers_are_told_from_others() -> None:
    table = torch.stack([torch.arange(20.0), torch.rand(20), torch.arange(20.0) + 0.5], 1)
    columns = integral(table)
    assert columns is not None
    assert columns.tolist() == [True, False, False]
    assert integral(torch.rand(20)) is None


def test_a_phase_is_off_by_the_error_times_the_frequency() -> None:
    def act() -> Tensor:
        positions = torch.arange(768).to(torch.bfloat16)
        return (positions[:, None] * torch.tensor([0.5, 0.01], dtype=torch.bfloat16)).float().sin()

    (item,) = seen(act)
    assert (item.how, item.before, item.format, item.sequence) == ("cast", "int64", "bfloat16", True)
    assert (item.numbers, item.distinct_after) == (768, 449)
    (use,) = item.uses
    assert (use.kind, use.error) == ("trigonometric", pytest.approx(1.0))


LATER = torch.arange(1_714_000_000, 1_714_000_000 + 40_000, 37)


@pytest.mark.parametrize(
    ("act", "kind", "error"),
    [
        (lambda: LATER.float() % 600, "periodic", 64 / 600),
        (lambda: LATER % 600.0, "periodic", 64 / 600),
        (lambda: (LATER / 600.0).sin(), "trigonometric", 64 / 600),
        (
            lambda: (LATER.double().float() * (2 * math.pi / 600)).cos(),
            "trigonometric",
            64 * 2 * math.pi / 600,
        ),
        (lambda: torch.arange(1000, dtype=torch.bfloat16).sin(), "trigonometric", 2.0),
        (lambda: torch.linspace(0, 1, 1000).bfloat16().mul(1000).sin(), "trigonometric", 2.0),
        (
            lambda: (torch.randint(0, 1000, (999,)) / 1000).bfloat16().float().mul(1000).sin(),
            "trigonometric",
            2.0,
        ),
        (
            lambda: torch.arange(600)[:, None] * torch.ones(1, dtype=torch.bfloat16) > torch.arange(600),
            "comparison",
            2.0,
        ),
    ],
)
def test_every_way_into_a_coarse_format_is_seen(act: Callable[[], Any], kind: str, error: float) -> None:
    assert uses(act) == {kind: pytest.approx(error, rel=0.1)}


def test_positions_that_autocast_casts_are_followed_through_the_product() -> None:
    def act() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            phases = torch.ones(4, 1) @ torch.arange(700).float()[None]
        return phases.cos()

    (item,) = seen(act)
    assert (item.how, item.uses[0].kind) == ("autocast", "trigonometric")


def test_a_comparison_of_positions_and_a_look_up_are_uses() -> None:
    assert uses(lambda: (p := torch.arange(600).bfloat16())[:, None] > p[None]) == {"comparison": 2.0}
    table = nn.Embedding(3000, 4)
    assert uses(lambda: table(torch.randint(0, 2900, (64,)).half().long()))["index"] == 1.0


def test_times_minus_times_and_minus_an_offset_are_uses() -> None:
    assert uses(lambda: (t := LATER.float())[1:] - t[:-1])["difference"] > 1
    assert uses(lambda: LATER.float() - 1_714_000_000.0)["offset"] == pytest.approx(64 / 11_550, rel=0.1)


def test_positions_added_to_or_multiplied_with_what_is_trained_are_uses() -> None:
    scores = torch.zeros(600, 600, requires_grad=True)
    weight = nn.Linear(600, 2)

    def act() -> Tensor:
        positions = torch.arange(600).bfloat16().float()
        return weight(positions[None]) + (scores * 2 - positions).sum()

    assert uses(act) == {"feature": 2.0, "bias": 2.0}


@pytest.mark.parametrize("count", [2047, 2048])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ends", [(-1, 1), (0, 1), (0.5, 3)])
def test_a_grid_of_coordinates_is_a_sequence_wherever_it_begins(
    ends: tuple[float, float], low: torch.dtype, count: int
) -> None:
    layer, grid = nn.Linear(1, 4), torch.linspace(*ends, count, dtype=torch.float64)
    left = len(grid.to(low).unique())
    if left == count:
        return
    (item,) = seen(lambda: layer(torch.linspace(*ends, count).to(low).float()[:, None]))
    assert (item.sequence, item.numbers, item.distinct_before) == (True, count, count)
    assert item.distinct_after == pytest.approx(left, rel=0.01)
    assert [use.kind for use in item.uses] == ["feature"]


def test_coordinates_of_images_are_a_sequence() -> None:
    def act() -> Tensor:
        rows, columns = torch.linspace(-1, 1, 1024), torch.linspace(-1, 1, 16)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
        return nn.Linear(2, 4)(grid.bfloat16().float())

    (item,) = seen(act)
    assert item.sequence
    assert item.distinct_after < 0.8 * item.distinct_before


def test_what_is_not_trained_with_is_no_feature_and_no_bias() -> None:
    layer, scores = nn.Linear(1, 4), torch.zeros(600, requires_grad=True)
    with torch.no_grad():
        assert uses(lambda: layer(torch.linspace(-1, 1, 2048).bfloat16().float()[:, None])) == {}
        assert uses(lambda: scores - torch.arange(600).bfloat16().float()) == {}


def probabilities(places: Tensor, numbers: int, width: float) -> Tensor:
    """Return bells around some places, as of a trained heat map."""
    scores = torch.zeros(len(places), numbers, requires_grad=True)
    return (scores - ((torch.arange(numbers) - places[:, None]) / width) ** 2 / 2).softmax(-1)


ODD = 2 * torch.arange(140, 180) + 1


@pytest.mark.parametrize(
    "product",
    [
        lambda p: p @ torch.arange(384.0),
        lambda p: p @ torch.arange(384.0)[:, None],
        lambda p: torch.arange(384.0) @ p.T,
        lambda p: torch.einsum("bn,n->b", p, torch.arange(384.0)),
        lambda p: p[None] @ torch.stack([torch.arange(384.0), torch.arange(384.0)], -1)[None],
        lambda p: p @ torch.linspace(0, 38.3, 384),
        lambda p: p @ (torch.arange(384.0) / 10),
        lambda p: p.bfloat16() @ torch.arange(384).bfloat16(),
        lambda p: p.bfloat16() @ torch.arange(384, dtype=torch.bfloat16),
    ],
)
def test_a_mean_of_positions_by_probabilities_is_off_by_what_they_are(
    product: Callable[[Tensor], Tensor],
) -> None:
    def act() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return product(probabilities(ODD, 384, 0.4))

    p = probabilities(ODD, 384, 0.4).detach().double()
    positions = torch.arange(384.0)
    off = p @ (positions.bfloat16() - positions).double()
    found = seen(act)
    assert found
    for item in found:
        (use,) = item.uses
        assert item.sequence
        assert use.kind == "mean"
        assert use.error == pytest.approx(float(off.square().mean().sqrt()), rel=0.5)
        assert use.error > 0.25


def test_a_mean_of_many_positions_is_off_by_little() -> None:
    for width in (2.0, 30.0):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = uses(lambda w=width: probabilities(ODD, 384, w) @ torch.arange(384.0))  # type: ignore[misc]
        assert found["mean"] < 0.05


def test_a_mean_of_what_is_exact_or_nearly_so_is_none() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert seen(lambda: probabilities(ODD - 200, 256, 0.4) @ torch.arange(256.0)) == ()
        assert uses(lambda: probabilities(ODD, 385, 0.4) @ torch.linspace(-20, 20, 385))["mean"] < 0.2
    with torch.autocast("cpu", dtype=torch.float16):
        assert seen(lambda: probabilities(ODD, 384, 0.4) @ torch.arange(384.0)) == ()


def test_weights_and_features_are_no_probabilities() -> None:
    weights = torch.rand(40, 384, requires_grad=True)

    def act() -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return [weights @ torch.arange(384.0), -probabilities(ODD, 384, 0.4) @ torch.arange(384.0)]

    assert set(uses(act)) == {"feature"}


def test_integers_that_are_exact_are_not_followed() -> None:
    assert seen(lambda: torch.arange(256).bfloat16().sin()) == ()
    assert seen(lambda: torch.arange(2048).half().sin()) == ()
    assert seen(lambda: torch.arange(0, 4096, 16).bfloat16().sin()) == ()
    assert seen(lambda: torch.randint(0, 256, (99,), dtype=torch.uint8).bfloat16() % 7) == ()
    assert seen(lambda: LATER.double() % 600) == ()
    assert seen(lambda: (LATER - LATER[0]).float() % 600) == ()


@pytest.mark.parametrize("lowest", [torch.finfo(torch.float32).min, -1e9])
def test_floats_beyond_all_fractions_are_no_integers(lowest: float) -> None:
    mask = torch.full((4, 20), lowest).masked_fill(torch.rand(4, 20) < 0.5, 0.0)
    scores, magnitudes = torch.randn(4, 20).half(), torch.rand(99, 2) * 1e12
    assert seen(lambda: scores + mask.half()) == ()
    assert seen(lambda: (mask.double() * 2).bfloat16() + 1) == ()
    assert seen(lambda: (a := magnitudes.bfloat16())[1:] - a[:-1]) == ()
    assert seen(lambda: (magnitudes.double() * 1e6).float().sin()) == ()


def test_magnitudes_are_no_use() -> None:
    pixels = torch.randint(0, 4096, (4, 1, 16, 16))
    convolution = nn.Conv2d(1, 2, 3)
    assert uses(lambda: convolution((pixels.bfloat16() / 4095).float())) == {
        "feature": pytest.approx(8 / 4095)
    }
    lengths, sums = torch.randint(300, 600, (64, 1)), torch.randn(64, 8).bfloat16()
    assert uses(lambda: sums / lengths) == {}
    assert uses(lambda: sums / lengths.bfloat16()) == {}


def test_a_position_that_scales_data_is_followed_no_further() -> None:
    steps, noise = torch.linspace(0, 1, 1000), torch.randn(1000, 8)
    assert uses(lambda: (steps.bfloat16()[:, None] * noise).sin()) == {}


def test_numbers_that_nobody_saw_exact_show_in_a_remainder() -> None:
    times = [1_714_000_000.0 + 37 * i + i % 11 for i in range(500)]
    (item,) = seen(lambda: torch.tensor(times) % 900)
    assert (item.how, item.uses[0].kind) == ("given", "periodic")
    assert uses(lambda: torch.tensor(times) % 604_800)["periodic"] < 1 / 64
    assert seen(lambda: torch.arange(0, 2.0**26, 1024.0) % 3000) == ()


MASK = torch.arange(640)[None] < torch.tensor([[600], [450], [630], [301]])


def test_positions_and_lengths_counted_in_a_low_format_are_looked_up_with() -> None:
    table, mask, states = nn.Embedding(700, 4), MASK.bfloat16(), torch.randn(4, 640, 2)
    (item,) = seen(lambda: table((mask.cumsum(1) * mask).long()))
    assert (item.how, item.format, item.distinct_before) == ("counted", "bfloat16", 630)
    assert [use.kind for use in item.uses] == ["index"]
    (item,) = seen(lambda: states[torch.arange(4), mask.sum(-1).long() - 1])
    assert [(use.kind, use.error) for use in item.uses] == [("index", 2.0)]


def test_counts_that_are_exact_or_are_magnitudes_are_no_use() -> None:
    table, states, numbers = nn.Embedding(700, 4), torch.randn(4, 640, 2), torch.rand(4, 640).bfloat16()
    assert seen(lambda: table((MASK.long().cumsum(1) * MASK).long())) == ()
    assert seen(lambda: table(MASK[:, :256].bfloat16().cumsum(1).long())) == ()
    assert seen(lambda: table(MASK.half().cumsum(1).long())) == ()
    assert seen(lambda: states.sum(1) / MASK.bfloat16().sum(1, keepdim=True)) == ()
    assert seen(lambda: table((numbers * 2).cumsum(1).long().clamp(max=699))) == ()
