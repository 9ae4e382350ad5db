"""Block formats as data: elements of few bits that share a scale, by block, channel or tensor.

A value is (element - zero) x block scale x tensor scale. What a scale is chosen by, its **rule**, belongs
to the format: with the same elements, the rule decides what saturates and what is flushed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from precdoctor.formats.arithmetic import round_to
from precdoctor.formats.codebook import (
    BNB_FP4_CODES,
    E2M1_CODES,
    E4M3FN_CODES,
    E5M2_CODES,
    INT4_AFFINE_CODES,
    INT4_CODES,
    INT8_AFFINE_CODES,
    INT8_CODES,
    NF4_CODES,
    Codebook,
)
from precdoctor.formats.format import E4M3FN, FLOAT32, Format, FormatError

#: what a block's scale is chosen by, amax being the largest magnitude in the block
#:   amax   amax / largest value, rounded to the scale's format: amax gets the largest code
#:   floor  2^(floor(log2 amax) - exponent of the largest value): up to a quarter of a binade saturates in
#:          e2m1 (OCP microscaling formats 1.0, 2023, section 6.3)
#:   ceil   the smallest power of two from amax / largest value up: nothing saturates
Rule = Literal["amax", "floor", "ceil"]

#: an unsigned power of two, which can't be 0; the scale of MX formats (OCP microscaling formats 1.0, 2023)
E8M0 = Format(name="e8m0", bits=8, precision=1, min_exponent=-127, max=2.0**127, has_inf=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How a tensor is cut into blocks: ``rows`` of ``length`` elements, each into blocks of ``size``."""

    rows: int
    length: int
    #: elements of a block; the last one of a row may be shorter
    size: int

    @property
    def blocks(self) -> int:
        """Return the number of blocks."""
        return self.rows * -(-self.length // self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat:
    """Elements of a codebook, the scales they share, and the rule by which these are chosen."""

    #: such as "mxfp4"; after a colon what differs from the plain form
    name: str
    #: the values of an element
    codebook: Codebook
    #: what shares a scale: so many elements of a row, a channel (all that have the first index in common,
    #: as in a weight of torch.nn.Linear; of a vector the whole), or the tensor
    block: int | Literal["channel", "tensor"]
    #: format of the stored scales
    scale: Format = FLOAT32
    #: how a scale follows from its block
    rule: Rule = "amax"
    #: a float32 scale of the tensor on top, by which the largest block's scale is the largest of its format
    has_tensor_scale: bool = False
    #: a block has a zero point, an element value that stands for 0, so that it need not lie in the middle
    affine: bool = False
    #: blocks run on over the ends of rows
    flat: bool = False

    def grid(self, shape: tuple[int, ...]) -> Grid:
        """Return how a tensor of that shape is cut into blocks."""
        count = math.prod(shape)
        rows, length = 1, count
        if self.block == "channel" and len(shape) > 1:
            rows, length = shape[0], math.prod(shape[1:])
        elif isinstance(self.block, int) and not self.flat and shape:
            rows, length = math.prod(shape[:-1]), shape[-1]
        size = min(self.block, length) if isinstance(self.block, int) else length
        return Grid(rows=rows, length=length, size=max(size, 1))

    def block_scale(self, extent: float, tensor_scale: float = 1.0) -> float:
        """Return the stored scale of a block: NaN if something in it is not finite, 0 if it underflows.

        ``extent`` is the block's amax, of an affine format the distance from its lowest value to its
        highest, 0 counting as one of them.
        """
        if not math.isfinite(extent) or math.isnan(tensor_scale):
            return math.nan
        if self.rule == "amax":
            largest = self.codebook.span if self.affine else self.codebook.max
            return round_to(self.scale, extent / largest / tensor_scale, saturate=True)
        if extent == 0:
            return self.scale.min_normal
        if self.rule == "floor":
            exponent = math.frexp(extent)[1] - math.frexp(self.codebook.max)[1]
        else:
            mantissa, exponent = math.frexp(extent / self.codebook.max)
            exponent -= mantissa == 0.5  # a power of two is its own ceiling
        return math.ldexp(1.0, min(max(exponent, self.scale.min_exponent), self.scale.max_exponent))

    def tensor_scale(self, amax: float) -> float:
        """Return the scale of a whole tensor: 1 where there is none or all is 0, NaN as in `block_scale`."""
        if not self.has_tensor_scale or amax == 0:
            return 1.0
        if not math.isfinite(amax):
            return math.nan
        return round_to(FLOAT32, amax / (self.codebook.max * self.scale.max)) or 1.0

    def held_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a packed tensor: codes, scales, zero points (as wide as an element)."""
        blocks = self.grid(shape).blocks
        bits = math.prod(shape) * self.codebook.bits + blocks * self.scale.bits
        bits += blocks * self.codebook.bits if self.affine else 0
        bits += FLOAT32.bits if self.has_tensor_scale else 0
        return -(-bits // 8)

    def bits_per_element(self, shape: tuple[int, ...]) -> float:
        """Return the bits that an element of a packed tensor takes, its share of the scales included."""
        return 8 * self.held_bytes(shape) / math.prod(shape)


def _granular(codes: Codebook, *, affine: bool = False) -> tuple[BlockFormat, ...]:
    """Return the format with a scale per tensor, per channel and per group of 64."""
    blocks: tuple[int | Literal["channel", "tensor"], ...] = ("tensor", "channel", 64)
    return tuple(
        BlockFormat(
            name=f"{codes.name}:{block}{':affine' if affine else ''}",
            codebook=codes,
            block=block,
            affine=affine,
        )
        for block in blocks
    )


MXFP4 = BlockFormat(name="mxfp4", codebook=E2M1_CODES, block=32, scale=E8M0, rule="floor")
MXFP4_CEIL = replace(MXFP4, name="mxfp4:ceil", rule="ceil")
MXFP8 = BlockFormat(name="mxfp8", codebook=E4M3FN_CODES, block=32, scale=E8M0, rule="floor")
MXFP8_E5M2 = replace(MXFP8, name="mxfp8:e5m2", codebook=E5M2_CODES)
#: NVIDIA's 4-bit format
NVFP4 = BlockFormat(name="nvfp4", codebook=E2M1_CODES, block=16, scale=E4M3FN, has_tensor_scale=True)
#: weights of std 0.02 have scales among e4m3fn's subnormals here, which are coarse
NVFP4_PLAIN = replace(NVFP4, name="nvfp4:no-tensor-scale", has_tensor_scale=False)
NF4 = BlockFormat(name="nf4", codebook=NF4_CODES, block=64, flat=True)
BNB_FP4 = BlockFormat(name="bnb-fp4", codebook=BNB_FP4_CODES, block=64, flat=True)
INT4 = _granular(INT4_CODES)
INT4_AFFINE = _granular(INT4_AFFINE_CODES, affine=True)
INT8 = _granular(INT8_CODES)
INT8_AFFINE = _granular(INT8_AFFINE_CODES, affine=True)
E2M1_SCALED = _granular(E2M1_CODES)[:2]
E4M3FN_SCALED = _granular(E4M3FN_CODES)[:2]
E5M2_SCALED = _granular(E5M2_CODES)[:2]

#: every block format, those with blocks of fixed size first
BLOCK_FORMATS: tuple[BlockFormat, ...] = (
    MXFP4,
    MXFP4_CEIL,
    NVFP4,
    NVFP4_PLAIN,
    NF4,
    BNB_FP4,
    MXFP8,
    MXFP8_E5M2,
    *E2M1_SCALED,
    *E4M3FN_SCALED,
    *E5M2_SCALED,
    *INT4,
    *INT4_AFFINE,
    *INT8,
    *INT8_AFFINE,
)


def block_format(name: str) -> BlockFormat:
    """Return the block format of that name; raises `FormatError`, which lists the names there are."""
    for fmt in BLOCK_FORMATS:
        if fmt.name == name:
            return fmt
    names = ", ".join(fmt.name for fmt in BLOCK_FORMATS)
    raise FormatError(f"no block format named {name!r}; there are {names}")
