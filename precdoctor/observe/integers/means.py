"""Means of a sequence by probabilities that are trained, as in a soft argmax: how far off they are.

Errors of neighbours cancel in a mean of many, and not in one of few, so the mean of the errors is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: products of two: the left one's last dimension against the right one's last but one, or its only one
_PRODUCTS = ("aten::mm", "aten::mv", "aten::bmm")
#: how far the sum of probabilities in 16 bits may be from 1
_SUM_OFF = 0.02


def errors(exact: Tensor, rounded: Tensor) -> Tensor | None:
    """Return the error of each number, laid out in memory as ``rounded`` is; None where that has gaps."""
    if rounded.untyped_storage().nbytes() != rounded.numel() * rounded.element_size():
        return None
    size, stride, device = rounded.size(), rounded.stride(), rounded.device
    off = torch.empty_strided(size, stride, dtype=torch.float64, device=device)
    return off.copy_(rounded.detach().double() - exact.detach().double())


def mean_error(product: str, left: Tensor, right: Tensor, off: Tensor, rounded: Tensor) -> float | None:
    """Return the root mean square error of what a product of probabilities and rounded numbers gives.

    ``off`` has the errors of the numbers, which are one of the factors. None where the other one does not
    hold probabilities along the dimension that is summed over, or is not trained.
    """
    chances = right if rounded is left else left
    along = -2 if rounded is left and chances.dim() > 1 else -1
    if product not in _PRODUCTS or not chances.requires_grad:
        return None
    weights = chances.detach().double()
    if bool((weights < 0).any()) or bool(((weights.sum(along) - 1).abs() > _SUM_OFF).any()):
        return None
    wrong = off.as_strided(rounded.size(), rounded.stride(), rounded.storage_offset())
    result = wrong @ weights if rounded is left else weights @ wrong
    return float(result.square().mean().sqrt())
