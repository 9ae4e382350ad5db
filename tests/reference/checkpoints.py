"""Slow and obvious twins of what `precdoctor.checkpoints` computes, one element at a time."""

from __future__ import annotations

import functools
import math

import torch

from precdoctor.formats import Format, headroom_bits, round_to


@functools.cache
def values_of(dtype: torch.dtype) -> list[float]:
    """Return all finite values of a format of at most 16 bits in order, zero once."""
    if dtype.itemsize == 1:
        every = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).double()
    else:
        every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype).double()
    return sorted({x for x in every.tolist() if math.isfinite(x)})


@functools.cache
def places(dtype: torch.dtype) -> dict[float, int]:
    """Return the place of each value of a format in their order."""
    return {value: place for place, value in enumerate(values_of(dtype))}


def ulps(a: torch.Tensor, b: torch.Tensor) -> list[int]:
    """Return how many values of the format one has to step over from each element to the other."""
    place = places(a.dtype)
    pairs = zip(a.double().flatten().tolist(), b.double().flatten().tolist(), strict=True)
    return [abs(place[x] - place[y]) for x, y in pairs]


def lost_share(weights: list[float], updates: list[float], fmt: Format) -> tuple[float, float]:
    """Return the lost share of the updates, and the median of their headroom in bits."""
    lost, bits = 0, []
    for weight, update in zip(weights, updates, strict=True):
        held = round_to(fmt, weight)
        lost += round_to(fmt, held + update) == held
        bits.append(headroom_bits(fmt, held, update))
    return lost / len(weights), sorted(bits)[len(bits) // 2]
