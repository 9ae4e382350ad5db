"""Weight quantizers, each a function from a matrix to the values that its codes stand for."""

from itertools import pairwise

import torch

FP4_LEVELS = [level / 12 for level in (0, 0.0625, 2, 3, 4, 6, 8, 12)]  # as in bitsandbytes
NF4_LEVELS = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4_LEVELS += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]


def nearest(x, levels):
    """Return for each element the index of the level next to it."""
    codes = torch.zeros_like(x, dtype=torch.uint8)
    for low, high in pairwise(levels):
        codes += x > (low + high) / 2
    return codes


# --------------------------------------------------- the 4-bit float of bitsandbytes, two codes in a byte


def quantize_fp4(weight, block=64):
    """Return the packed codes and the largest magnitude of each block."""
    blocks = weight.reshape(-1, block)
    absmax = blocks.abs().amax(1, keepdim=True)
    codes = nearest((blocks / absmax.clamp(min=1e-30)).abs(), FP4_LEVELS)
    codes = (codes + 8 * (blocks < 0).to(torch.uint8)).flatten()
    return codes[0::2] * 16 + codes[1::2], absmax, weight.shape


def dequantize_fp4(packed, absmax, shape):
    codes = torch.stack((packed >> 4, packed & 15), dim=1).flatten().int()
    levels = torch.tensor(FP4_LEVELS + [-level for level in FP4_LEVELS], device=codes.device)
    return (levels.index_select(0, codes).view(absmax.shape[0], -1) * absmax).view(shape)


def bnb_fp4(weight):
    return dequantize_fp4(*quantize_fp4(weight))


def nf4(weight, block=64):
    blocks = weight.reshape(-1, block)
    absmax = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)
    codes = nearest(blocks / absmax, NF4_LEVELS).flatten().int()
    levels = torch.tensor(NF4_LEVELS, device=codes.device)
    return (levels.index_select(0, codes).view_as(blocks) * absmax).view(weight.shape)


# ----------------------------------------------------------------------- grids reached by rounding


def stochastic(x):
    """Round up as often as x is close to the next integer."""
    return torch.floor(x + torch.rand_like(x))


def round_e2m1(x, rounding=torch.round):
    """Round to 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives; saturate."""
    step = torch.exp2(torch.floor(torch.log2(x.detach().abs().clamp(1, 4))) - 1)
    return (rounding(x / step) * step).clamp(-6, 6)


def nvfp4(weight, rounding=torch.round):
    """Blocks of 16 with an E4M3 scale, and one float32 scale for the matrix."""
    blocks = weight.reshape(-1, 16)
    tensor_scale = (blocks.abs().amax() / (448 * 6)).clamp(min=1e-30)
    scale = (blocks.abs().amax(1, keepdim=True) / 6 / tensor_scale).clamp(min=2**-9)
    scale = scale.to(torch.float8_e4m3fn).to(weight.dtype) * tensor_scale
    return (round_e2m1(blocks / scale, rounding) * scale).view(weight.shape)


def mxfp4(weight, rounding=torch.round):
    """Blocks of 32 with a power of two for a scale."""
    blocks = weight.reshape(-1, 32)
    absmax = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)
    scale = torch.exp2(torch.floor(torch.log2(absmax)) - 2)
    return (round_e2m1(blocks / scale, rounding) * scale).view(weight.shape)


def e2m1_tensor(weight, rounding=torch.round):
    scale = weight.abs().amax() / 6
    return round_e2m1(weight / scale, rounding) * scale


def e2m1_channel(weight, scale=None):
    scale = channel_scale(weight) if scale is None else scale
    return round_e2m1(weight / scale) * scale


def e2m1_unscaled(weight):
    return round_e2m1(weight)


def channel_scale(weight, largest=6):
    return weight.abs().amax(1, keepdim=True) / largest


def int8(weight, rounding=torch.round, largest=127):
    scale = channel_scale(weight, largest)
    return rounding(weight / scale).clamp(-largest, largest) * scale


def int4(weight):
    return int8(weight, largest=7)


def int2(weight):
    return int8(weight, largest=1)


def fp8(weight):
    """E4M3 with one scale for the matrix."""
    scale = weight.abs().amax() / 448
    return (weight / scale).to(torch.float8_e4m3fn).to(weight.dtype) * scale


def none(weight):
    return weight
