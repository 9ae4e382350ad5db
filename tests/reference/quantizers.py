"""Slow, obvious twins of what is measured of quantizers: plain Python over lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def numbers(tensor: Tensor) -> list[float]:
    return [float(value) for value in tensor.detach().reshape(-1).tolist()]


def share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def mean_absolute_error(weight: Tensor, used: Tensor) -> float:
    pairs = list(zip(numbers(weight), numbers(used), strict=True))
    return sum(abs(q - w) for w, q in pairs) / len(pairs)


def sqnr_db(weight: Tensor, used: Tensor) -> float | None:
    pairs = list(zip(numbers(weight), numbers(used), strict=True))
    noise = sum((q - w) ** 2 for w, q in pairs)
    return 10 * math.log10(sum(w * w for w, _ in pairs) / noise) if noise else None


def flushed_share(weight: Tensor, used: Tensor) -> float:
    return share([w != 0 and q == 0 for w, q in zip(numbers(weight), numbers(used), strict=True)])


def clipped_share(weight: Tensor, limit: Tensor) -> float:
    """Return the share of the weights beyond the last code, which stands for ``limit`` (of any shape)."""
    limits = numbers(limit.expand(weight.shape))
    return share([abs(w) > 1.001 * last for w, last in zip(numbers(weight), limits, strict=True)])


def changed_share(before: Tensor, after: Tensor) -> float:
    return share([a != b for a, b in zip(numbers(before), numbers(after), strict=True)])


def undone_share(oldest: Tensor, before: Tensor, after: Tensor) -> float:
    """Return the share of the changes from ``before`` to ``after`` that lead back to ``oldest``."""
    triples = zip(numbers(oldest), numbers(before), numbers(after), strict=True)
    return share([first == last for first, middle, last in triples if middle != last])


def density(gradient: Tensor) -> float:
    return share([g != 0 for g in numbers(gradient)])


def cosine(a: Tensor, b: Tensor) -> float:
    pairs = list(zip(numbers(a), numbers(b), strict=True))
    norms = math.sqrt(sum(x * x for x, _ in pairs)) * math.sqrt(sum(y * y for _, y in pairs))
    return sum(x * y for x, y in pairs) / norms


def moved(first: Tensor, last: Tensor, scale: Tensor) -> float:
    """Return the distance of two tensors over the norm of a third."""
    distance = math.sqrt(sum((b - a) ** 2 for a, b in zip(numbers(first), numbers(last), strict=True)))
    return distance / math.sqrt(sum(value * value for value in numbers(scale)))


def levels(codes: Tensor) -> int:
    return len(set(numbers(codes)))


# ---------------------------------------------------------------------- quantizers to be measured


def per_channel(weight: Tensor, bits: int = 4) -> tuple[Tensor, Tensor]:
    """Return integer codes and a scale per row."""
    largest = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True) / largest
    return torch.round(weight / scale), scale


def per_tensor(weight: Tensor, bits: int = 4) -> tuple[Tensor, Tensor]:
    """Return integer codes and one scale."""
    scale = weight.abs().max() / (2 ** (bits - 1) - 1)
    return torch.round(weight / scale), scale


def per_block(weight: Tensor, block: int = 8) -> tuple[Tensor, Tensor]:
    """Return 4-bit codes, of shape (blocks, block), and a scale per block."""
    blocks = weight.reshape(-1, block)
    scale = blocks.abs().amax(1, keepdim=True) / 7
    return torch.round(blocks / scale), scale


def projection(gradient: Tensor, used: Tensor) -> float:
    pairs = list(zip(numbers(gradient), numbers(used), strict=True))
    return sum(q * g for g, q in pairs) / sum(g * g for g, _ in pairs)


def bias(gradient: Tensor, used: Tensor) -> float:
    pairs = list(zip(numbers(gradient), numbers(used), strict=True))
    return abs(sum(q - g for g, q in pairs)) / sum(abs(g) for g, _ in pairs)


def flushed_energy(gradient: Tensor, used: Tensor) -> float:
    pairs = list(zip(numbers(gradient), numbers(used), strict=True))
    return sum(g * g for g, q in pairs if q == 0) / sum(g * g for g, _ in pairs)
