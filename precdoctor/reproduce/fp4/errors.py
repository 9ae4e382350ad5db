"""Measure what formats do to the weights of the report before their training: no data, no GPU.

Run as a program with the names of formats: prints the mean absolute error and the SQNR of each as JSON.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator

import torch

from precdoctor.formats import BFLOAT16, block_format
from precdoctor.numerics import fake_quantize, round_to

#: of the report's model
WIDTH, HIDDEN, LAYERS, VOCABULARY = 384, 1536, 6, 49152
SEED, STD = 42, 0.02


def weights() -> Iterator[torch.Tensor]:
    """Yield the quantized layers' weights as seed 42 draws them: after the embedding, then block by block."""
    generator = torch.Generator().manual_seed(SEED)
    torch.empty(VOCABULARY, WIDTH).normal_(generator=generator)
    block = ((3 * WIDTH, WIDTH), (WIDTH, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN))
    for shape in (*block * LAYERS, (VOCABULARY, WIDTH)):
        yield torch.randn(shape, generator=generator) * STD


def measure(quantizers: dict[str, Callable[[torch.Tensor], torch.Tensor]]) -> dict[str, dict[str, float]]:
    """Return of each quantizer the mean absolute error over all weights and the SQNR in decibels."""
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in quantizers}
    signal, elements = 0.0, 0
    for weight in weights():
        signal += weight.double().square().sum().item()
        elements += weight.numel()
        for name, quantizer in quantizers.items():
            error = (quantizer(weight) - weight).double()
            sums[name] += torch.stack([error.abs().sum(), error.square().sum()])
    return {
        name: {"mean_absolute_error": absolute / elements, "sqnr_db": 10 * math.log10(signal / noise)}
        for name, (absolute, noise) in ((name, pair.tolist()) for name, pair in sums.items())
    }


def quantizer(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the round trip through a format."""
    if name == BFLOAT16.name:
        return lambda weight: round_to(weight, BFLOAT16)
    fmt = block_format(name)
    return lambda weight: fake_quantize(weight, fmt)


if __name__ == "__main__":
    torch.set_num_threads(1)  # other processes run on the other cores
    print(json.dumps(measure({name: quantizer(name) for name in sys.argv[1:]}), indent=1))  # noqa: T201
