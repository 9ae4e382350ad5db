"""Columns of data that others, far larger, have flushed each time; what is no loss is told from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from precdoctor.rules import diagnose
from tests.observe.quantizers.test_clipping import Quantize, seen, train


class Scaled(nn.Module):
    """Brings its columns to sizes of their own, and quantizes them with the scale of all."""

    def __init__(self, sizes: Tensor, quantize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.sizes, self.quantize = sizes, quantize

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.sizes
        return (x + (self.quantize(x) - x).detach()) / self.sizes


def int8(x: Tensor) -> Tensor:
    scale = x.detach().abs().amax().clamp(min=1e-8) / 127
    return (x / scale).round().clamp(-127, 127) * scale


def int8_in_place(x: Tensor) -> Tensor:
    scale = x.detach().abs().amax() / 127
    return x.clone().div_(scale).round_().clamp_(-127, 127).mul_(scale)


def int8_clamped_first(x: Tensor) -> Tensor:
    scale = x.detach().abs().amax() / 127
    return (x / scale).clamp(-127, 127).round() * scale


def int8_per_row(x: Tensor) -> Tensor:
    scale = x.detach().abs().amax(1, keepdim=True) / 127
    return (x / scale).round().clamp(-127, 127) * scale


def int8_per_column(x: Tensor) -> Tensor:
    scale = x.detach().abs().amax(0) / 127
    return (x / scale).round().clamp(-127, 127) * scale


def fake_int8(x: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, float(x.detach().abs().max()) / 127, 0, -127, 127)


def int4(x: Tensor) -> Tensor:
    scale = x.detach().abs().amax() / 7
    return (x / scale).round().clamp(-7, 7) * scale


def sign(x: Tensor) -> Tensor:
    scale = x.detach().abs().amax()
    return (x / scale).round().clamp(-1, 1) * scale


def sizes(large: int, factor: float = 1000.0) -> Tensor:
    """Return sizes of 32 columns, some of them larger than the others."""
    return torch.ones(32).index_fill(0, torch.arange(large), factor)


def judged(middle: nn.Module) -> list[tuple[str, str]]:
    return [(f.rule, f.severity) for f in diagnose(train(middle).evidence()).findings if f.rule != "PD602"]


@pytest.mark.parametrize("quantize", [int8, int8_in_place, int8_clamped_first, fake_int8, int4])
def test_columns_that_a_larger_one_flushes_each_time_are_lost(quantize: Callable[[Tensor], Tensor]) -> None:
    middle = Scaled(sizes(1), quantize)
    (found,) = seen(middle)
    assert (found.columns, found.lost_columns, found.column_passes) == (32, 31, 3)
    assert judged(middle) == [("PD603", "warning")]


@pytest.mark.parametrize(
    ("middle", "lost"),
    [
        (Scaled(sizes(0), int8), 0),
        (Scaled(sizes(1, 20.0), int8), 0),
        (Scaled(sizes(20), int8), 12),  # an outlier flushes a few
        (Scaled(sizes(1), int8_per_column), 0),
        (Scaled(sizes(1), int8_per_row), 0),  # in some rows the large one is small
        (Scaled(sizes(1), sign), 0),
        (Scaled(sizes(1, 20.0), int4), 0),  # negative values of a GELU, and a grid coarse by choice
    ],
)
def test_a_scale_that_fits_or_an_outlier_that_flushes_a_few_loses_no_columns(
    middle: nn.Module, lost: int
) -> None:
    (found,) = seen(middle)
    assert found.lost_columns == lost
    assert judged(middle) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.clamp(min=0) * (torch.arange(32) < 4),  # dead
        lambda x: F.one_hot(x.argmax(1), 32).float() * (torch.rand(64, 32) + 0.5),  # sparse
        lambda x: (8 * x - 6 * torch.arange(32) / 8).softmax(1),  # probabilities
        lambda x: (x * 0 + 0.001).index_copy(1, torch.tensor([0]), x[:, :1] * 9),  # constant
    ],
)
def test_dead_sparse_and_constant_columns_and_probabilities_are_not_counted(
    change: Callable[[Tensor], Tensor],
) -> None:
    module = Quantize(lambda x: int8(change(x)))
    found = seen(module)
    assert [site.lost_columns for site in found] == [0]


def test_a_column_that_comes_through_once_is_not_lost() -> None:
    passes: list[int] = []

    def now_and_then(x: Tensor) -> Tensor:
        passes.append(0)
        return int8(x * sizes(1, 1000.0 if len(passes) != 3 else 1.0))

    (found,) = seen(Quantize(now_and_then))
    assert (found.columns, found.lost_columns) == (32, 0)


def test_columns_of_images_are_their_channels() -> None:
    class Images(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            images = (
                x.reshape(4, 16, 16, 2) * torch.ones(16).index_fill(0, torch.tensor(3), 1e4)[:, None, None]
            )
            return x + (int8(images).reshape(x.shape) - x).detach()

    (found,) = seen(Images())
    assert (found.columns, found.lost_columns) == (16, 15)


def test_one_line_may_quantize_several_tensors_in_a_pass() -> None:
    (found,) = seen(Quantize(lambda x: int8(x * sizes(1)) + int8(x.T).T[:, :32]))
    assert (found.columns, found.lost_columns, found.column_passes) == (32, 31, 3)
