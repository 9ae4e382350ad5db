"""Block formats on tensors: scales, codes and back, and what quantization does to the latent weights.

Arithmetic is in float32, or in float64 if the tensor is; scales are chosen in float64 and rounded once. What
is not finite has no place on a grid: its block's scale is NaN (with a tensor scale, every block's), and so is
all that comes back from it. A block whose scale is 0 comes back as zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from precdoctor.formats import FLOAT32, FLOAT64, BlockFormat, Codebook
from precdoctor.numerics.carrier import carry, power_of_two
from precdoctor.numerics.rounding import round_to

#: exponents of float64, in which the powers of two of scales are formed
_LAYOUT64 = carry(torch.empty(0), FLOAT64.precision)[1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scales:
    """What maps the blocks of one tensor onto codes: one entry per block, row by row."""

    #: as stored, so values of the format's scale format; in float32
    block: torch.Tensor
    #: of the whole tensor; float32, a scalar
    tensor: torch.Tensor | None = None
    #: element values that stand for 0; float32; None where it is 0 itself
    zero: torch.Tensor | None = None

    @property
    def total(self) -> torch.Tensor:
        """Return what the elements of each block are multiplied by; in float32."""
        return self.block if self.tensor is None else self.block * self.tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantized:
    """A tensor as codes and scales."""

    format: BlockFormat
    #: index into the codebook's values, in the tensor's shape; uint8
    codes: torch.Tensor
    scales: Scales
    #: float64 if that was quantized
    dtype: torch.dtype = torch.float32


def scales_of(x: torch.Tensor, fmt: BlockFormat) -> Scales:
    """Return the scales that the format's rule chooses for the tensor."""
    blocks = _split(carry(x, 0)[0], fmt)
    low, high = blocks.amin(1).double(), blocks.amax(1).double()  # NaN wins both
    if fmt.affine:
        low, high = low.clamp(max=0), high.clamp(min=0)
        extent = high - low
    else:
        extent = torch.maximum(-low, high).abs()  # of zeros, not -0
    tensor = _tensor_scale(extent, fmt) if fmt.has_tensor_scale else None
    scale = _block_scale(extent, fmt, tensor).float()
    zero = None
    if fmt.affine:
        lowest, highest = fmt.codebook.values[0], fmt.codebook.values[-1]
        zero = (lowest - (low / scale).round()).nan_to_num(0, 0, 0).clamp(lowest, highest).float()
    return Scales(block=scale, tensor=tensor, zero=zero)


def quantize(x: torch.Tensor, fmt: BlockFormat, scales: Scales | None = None) -> Quantized:
    """Return codes and scales, rounded by ties_to_even; what lies beyond the last code saturates.

    With ``scales`` given instead of chosen by the rule, infinities saturate too, and NaN becomes the largest
    value, as in the conversions of NVIDIA's hardware to formats that have no NaN.
    """
    elements, scales = _elements(x, fmt, scales)
    codes = torch.bucketize(elements, _thresholds(fmt.codebook, elements), out_int32=True)
    return _quantized(x, codes, fmt, scales, elements.dtype)


def quantize_stochastic(
    x: torch.Tensor,
    fmt: BlockFormat,
    generator: torch.Generator | None = None,
    scales: Scales | None = None,
) -> Quantized:
    """Return codes and scales, each code one of the two that enclose its element, right on average.

    Takes one uniform number per element from ``generator``, by default torch's global one. What lies beyond
    the last code saturates, and so is biased.
    """
    elements, scales = _elements(x, fmt, scales)
    values = _values(fmt.codebook, elements.dtype, elements.device)
    below = _below(elements, values)
    rest = (elements - values[below]) / (values[below + 1] - values[below])
    uniform = torch.rand(rest.shape, generator=generator, dtype=rest.dtype, device=rest.device)
    return _quantized(x, below + (uniform < rest), fmt, scales, elements.dtype)


def dequantize(quantized: Quantized) -> torch.Tensor:
    """Return the values that codes and scales stand for, in float32 or the float64 that was quantized."""
    fmt, scales = quantized.format, quantized.scales
    codes = _split(quantized.codes, fmt)
    elements = _values(fmt.codebook, quantized.dtype, codes.device)[codes.int()]
    if scales.zero is not None:
        elements -= scales.zero.unsqueeze(1)
    return _join(elements * scales.total.unsqueeze(1), quantized.codes, fmt)


def fake_quantize(x: torch.Tensor, fmt: BlockFormat, scales: Scales | None = None) -> torch.Tensor:
    """Return the tensor quantized by ties_to_even and back: what a layer computes with."""
    return dequantize(quantize(x, fmt, scales))


def quantum(x: torch.Tensor, fmt: BlockFormat, scales: Scales | None = None) -> torch.Tensor:
    """Return the step of the grid at each element, the distance of the values that enclose it; NaN if none.

    Of an element on the grid, the distance to the next value away from zero; beyond the last code, that of
    the outermost two.
    """
    elements, scales = _elements(x, fmt, scales)
    values = _values(fmt.codebook, elements.dtype, elements.device)
    below = _below(elements, values)
    # a value below zero belongs to the step under it: away from zero
    below = (below - ((elements < 0) & (elements == values[below])).to(below.dtype)).clamp_(min=0)
    return _join((values[below + 1] - values[below]) * scales.total.unsqueeze(1), x, fmt)


def flip_distance(
    x: torch.Tensor,
    fmt: BlockFormat,
    direction: torch.Tensor | float | None = None,
    scales: Scales | None = None,
) -> torch.Tensor:
    """Return the change of each element beyond which its code flips, the scale being held: its dead zone.

    ``direction`` counts by its sign, as in `half_ulp`; without one, the nearer side. inf where there is no
    further code in that direction, or no scale to reach one; NaN where the scale is.
    """
    elements, scales = _elements(x, fmt, scales)
    thresholds = _thresholds(fmt.codebook, elements)
    codes = torch.bucketize(elements, thresholds, out_int32=True)
    infinity = torch.full_like(thresholds[:1], torch.inf)
    edges = torch.cat([-infinity, thresholds, infinity])
    total = scales.total.unsqueeze(1)
    to_below, to_above = ((edges[code] - elements).abs() * total for code in (codes, codes + 1))
    to_below, to_above = (
        _join(torch.where(total == 0, torch.inf, side), x, fmt) for side in (to_below, to_above)
    )
    if direction is None:
        return torch.minimum(to_below, to_above)
    if not isinstance(direction, torch.Tensor):
        direction = torch.full((), direction, device=x.device)
    return torch.where(direction.signbit(), to_below, to_above)


def saturated_share(x: torch.Tensor, fmt: BlockFormat, scales: Scales | None = None) -> torch.Tensor:
    """Return the share of elements beyond the last code, also by less than half a step; a float64 scalar.

    What rounding of the scale itself in float32 causes (2^-20 of an element) does not count.
    """
    elements, _ = _elements(x, fmt, scales)
    slack = 1 + 2.0**-20
    low, high = fmt.codebook.values[0] * slack, fmt.codebook.values[-1] * slack
    return _join((elements < low) | (elements > high), x, fmt).double().mean()


def flushed_share(x: torch.Tensor, fmt: BlockFormat, scales: Scales | None = None) -> torch.Tensor:
    """Return the share of elements, themselves not 0, that come back as 0; a float64 scalar."""
    return ((fake_quantize(x, fmt, scales) == 0) & (x.detach() != 0)).double().mean()


def _tensor_scale(extent: torch.Tensor, fmt: BlockFormat) -> torch.Tensor:
    amax = _finite_or_nan(extent.amax() if extent.numel() else extent.new_zeros(()))
    scale = round_to(amax / (fmt.codebook.max * fmt.scale.max), FLOAT32).float()
    return torch.where(scale == 0, 1.0, scale)


def _block_scale(extent: torch.Tensor, fmt: BlockFormat, tensor: torch.Tensor | None) -> torch.Tensor:
    """Return what `BlockFormat.block_scale` does, for all blocks; in float64."""
    extent = _finite_or_nan(extent)
    if fmt.rule == "amax":
        ratio = extent / (fmt.codebook.span if fmt.affine else fmt.codebook.max)
        return round_to(ratio if tensor is None else ratio / tensor, fmt.scale, saturate=True)
    if fmt.rule == "floor":
        exponent = torch.frexp(extent).exponent - math.frexp(fmt.codebook.max)[1]
    else:
        mantissa, exponent = torch.frexp(extent / fmt.codebook.max)
        exponent = exponent - (mantissa == 0.5).int()  # a power of two is its own ceiling
    exponent = torch.where(extent == 0, fmt.scale.min_exponent, exponent)
    field = exponent.clamp(fmt.scale.min_exponent, fmt.scale.max_exponent).long().add_(_LAYOUT64.bias)
    return power_of_two(field, _LAYOUT64, torch.float64).add_(extent, alpha=0)  # NaN stays NaN


def _finite_or_nan(extent: torch.Tensor) -> torch.Tensor:
    return extent + 0 * extent  # 0 * inf is NaN


def _elements(x: torch.Tensor, fmt: BlockFormat, scales: Scales | None) -> tuple[torch.Tensor, Scales]:
    """Return ``x`` in units of its scale and shifted by its zero point, one row per block, and the scales."""
    carried, _ = carry(x, 0)
    if scales is None:
        scales = scales_of(x, fmt)
    total = scales.total.unsqueeze(1)
    elements = _split(carried, fmt) / total
    elements.masked_fill_((total == 0) | total.isnan(), 0)
    if scales.zero is not None:
        elements += scales.zero.unsqueeze(1)
    return elements, scales


def _split(x: torch.Tensor, fmt: BlockFormat) -> torch.Tensor:
    """Return one row per block; the last ones of a row of the tensor are filled up with zeros."""
    grid = fmt.grid(tuple(x.shape))
    rows = torch.nn.functional.pad(x.reshape(grid.rows, grid.length), (0, -grid.length % grid.size))
    return rows.reshape(grid.blocks, grid.size).contiguous()  # or bucketize warns


def _join(blocks: torch.Tensor, like: torch.Tensor, fmt: BlockFormat) -> torch.Tensor:
    """Return what `_split` cut and filled up, in the shape it had."""
    grid = fmt.grid(tuple(like.shape))
    width = grid.length + -grid.length % grid.size
    return blocks.reshape(grid.rows, width)[:, : grid.length].reshape(like.shape)


def _values(codebook: Codebook, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(codebook.values, dtype=dtype, device=device)


def _thresholds(codebook: Codebook, like: torch.Tensor) -> torch.Tensor:
    """Return the largest number of the dtype that still rounds down, between each two values."""
    exact = torch.tensor([middle for middle, _ in codebook.thresholds], dtype=torch.float64)
    to_upper = torch.tensor([ties_up for _, ties_up in codebook.thresholds])
    nearest = exact.to(like.dtype)
    rounds_up = (nearest.double() > exact) | ((nearest == exact) & to_upper)
    below = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    return torch.where(rounds_up, below, nearest).to(like.device)


def _below(elements: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the lower code of the step in which each element lies, the outermost step included."""
    return (torch.bucketize(elements, values, out_int32=True, right=True) - 1).clamp_(0, len(values) - 2)


def _quantized(
    x: torch.Tensor, codes: torch.Tensor, fmt: BlockFormat, scales: Scales, dtype: torch.dtype
) -> Quantized:
    return Quantized(format=fmt, codes=_join(codes, x, fmt).to(torch.uint8), scales=scales, dtype=dtype)
