"""What each block format makes of normal weights, as measured: mean absolute error and SQNR."""

from __future__ import annotations

import pytest
import torch

from precdoctor.formats import BFLOAT16, block_format
from precdoctor.numerics import fake_quantize, round_to, sqnr_db

STD = 0.02
#: format, mean absolute error and decibels on N(0, 0.02) in the layers of a small transformer
#: (six blocks of width 384 and a head of 49,152 tokens, 29.5 million weights, each layer by itself)
MEASURED = [
    ("bnb-fp4", 0.001931, 18.3),
    ("nf4", 0.001456, 20.7),
    ("mxfp4", 0.001675, 18.9),
    ("mxfp4:ceil", 0.001866, 18.5),
    ("nvfp4", 0.001429, 20.4),
    ("nvfp4:no-tensor-scale", 0.001554, 19.7),
    ("e2m1:tensor", 0.002276, 17.3),
    ("e2m1:channel", 0.001776, 18.9),
    ("int4:tensor", 0.003591, 13.7),
    ("int4:channel", 0.002289, 17.5),
    ("int4:64", 0.001825, 19.4),
    ("int8:channel", 0.000126, 42.7),
    ("e4m3fn:tensor", 0.000359, 31.6),
    ("e5m2:tensor", 0.000716, 25.6),
]


def weights(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(42)) * STD


@pytest.mark.parametrize(("name", "error", "decibels"), MEASURED, ids=[name for name, *_ in MEASURED])
def test_normal_weights_lose_what_was_measured(name: str, error: float, decibels: float) -> None:
    # a scale of many elements hangs on the largest of them: nearly as many, and that one's own chance
    x = weights(12288 if name.endswith(":tensor") else 1536, 384)
    back = fake_quantize(x, block_format(name))
    tolerance = 0.05 if name.endswith((":tensor", ":channel")) else 0.003
    assert (x - back).abs().double().mean().item() == pytest.approx(error, rel=tolerance)
    assert sqnr_db(x, back).item() == pytest.approx(decibels, abs=10 * tolerance + 0.07)


def test_bfloat16_loses_far_less() -> None:
    x = weights(1536, 384)
    assert (x - round_to(x, BFLOAT16)).abs().mean().item() == pytest.approx(0.000022, abs=1e-6)


@pytest.mark.scenario
def test_the_4_bit_float_of_bitsandbytes_gives_the_error_of_the_report() -> None:
    """The report logged 0.001931 five times, of a model built at seed 42: its weights had not moved."""
    torch.manual_seed(42)
    torch.nn.Embedding(49152, 384)  # what the model draws first
    fmt, layers = block_format("bnb-fp4"), [*([(384, 384)] * 4), (1536, 384), (384, 1536)] * 6
    total = count = 0.0
    for shape in [*layers, (49152, 384)]:
        x = torch.randn(shape) * STD
        total += sum((part - fake_quantize(part, fmt)).abs().double().sum().item() for part in x.split(4096))
        count += x.numel()
    assert count == 29_491_200
    assert total / count == pytest.approx(0.00193104443, abs=2e-10)
