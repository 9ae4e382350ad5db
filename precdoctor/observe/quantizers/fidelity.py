"""What a forward pass used of a weight, compared with the weight: noise, clipping, flushing to zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from precdoctor.evidence import Fidelity
from precdoctor.observe.watch import Watch

#: a weight beyond this multiple of the largest used magnitude is clipped; less is rounding of the scale
_BEYOND = 1.001
#: used values larger than the weight by this factor are codes: their scale follows after the product
CODES = 2.0


def sample(watch: Watch, tensor: Tensor) -> Tensor:
    """Return a float64 copy of the watched elements of a tensor, as a vector."""
    return watch.view(tensor).reshape(-1).double().clone()


def decibels(signal: float, noise: float) -> float | None:
    """Return the ratio of two energies in decibels; None where one of them is zero or not finite."""
    known = 0 < signal < math.inf and 0 < noise < math.inf
    return 10 * math.log10(signal / noise) if known else None


def fidelity(step: int, parameter: Tensor, used: Tensor, watch: Watch) -> Fidelity:
    """Compare the used values with the parameter, both of one shape, after ``step`` optimizer steps.

    Shares and the error are of the watched elements; the largest magnitudes are those of the whole tensors.
    Codes whose scale follows after the product are compared as scaled to fit, row by row.
    """
    eps = torch.finfo(used.dtype).eps if used.is_floating_point() else 0.0
    used = used.detach().double()
    weight, as_used = sample(watch, parameter), sample(watch, used)
    used = _in_units_of(parameter, used)
    seen = sample(watch, used)
    finite = torch.isfinite(seen)
    error = (seen - weight)[finite]
    noise, signal = float(error.square().sum()), float(weight[finite].square().sum())
    size = used.abs()
    tensor_max, weight_max = float(size.max()), float(parameter.detach().abs().max())
    return Fidelity(
        step=step,
        mean_absolute_error=float(error.abs().mean()) if bool(finite.any()) else math.inf,
        sqnr_db=decibels(signal, noise),
        clipped_share=_clipped_share(weight, seen, size, watch, eps),
        reach=tensor_max / weight_max if weight_max > 0 and math.isfinite(tensor_max) else 1.0,
        correlation=_correlation(weight[finite], as_used[finite]),
        flushed_share=float(((seen == 0) & (weight != 0)).double().mean()),
        non_finite=int((~finite & torch.isfinite(weight)).sum()),
    )


def _correlation(weight: Tensor, seen: Tensor) -> float:
    """Return Pearson's correlation; 1 where one of both is constant."""
    if not len(seen):
        return 1.0
    one, other = weight - weight.mean(), seen - seen.mean()
    size = float(one.norm() * other.norm())
    return float((one * other).sum()) / size if size > 0 else 1.0


def _in_units_of(parameter: Tensor, used: Tensor) -> Tensor:
    weight = parameter.detach().double()
    largest = float(used.abs().max())
    if not math.isfinite(largest) or largest <= CODES * float(weight.abs().max()):
        return used
    rows, codes = (t.flatten(1) if t.dim() > 1 else t.reshape(1, -1) for t in (weight, used))
    scale = (rows * codes).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True).clamp(min=1e-300)
    return (codes * scale).reshape(used.shape)


def _clipped_share(weight: Tensor, seen: Tensor, size: Tensor, watch: Watch, eps: float) -> float:
    """Return the share of the weights beyond the last code of their tensor, or of their row, that got it.

    Where all codes but 0 have one magnitude (signs, ternary weights), there is no range to leave.
    """
    rows = size.flatten(1) if size.dim() > 1 else size.reshape(1, -1)
    row_max = rows.amax(1, keepdim=True)
    # w + (q - w) differs from q by a rounding of either
    inside = (rows > 2 * eps * row_max) & (rows < (1 - 2 * eps) * row_max)
    has_range = sample(watch, inside.any(1, keepdim=True).expand(rows.shape).reshape(size.shape)) > 0
    # of a row the largest weight may be rounded down by half the distance of the last two codes
    rounding = (row_max - torch.where(rows < (1 - 2 * eps) * row_max, rows, 0).amax(1, keepdim=True)) / 2
    shares = []
    for largest, slack in (
        (rows.amax().expand(row_max.shape), torch.zeros_like(row_max)),
        (row_max, rounding),
    ):
        last, slack = (sample(watch, t.expand(rows.shape).reshape(size.shape)) for t in (largest, slack))
        got_last = seen.abs() >= last - 2 * eps * (last + weight.abs())
        clipped = got_last & (weight.abs() > _BEYOND * (last + slack)) & has_range
        shares.append(float(clipped.double().mean()))
    return max(shares)
