"""Weight formats: a matrix to codes and scales, and back. Scales are kept in float16."""

from dataclasses import dataclass

import torch

NF4_LEVELS = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4_LEVELS += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]


@dataclass(frozen=True)
class IntFormat:
    """Signed integers times a scale for each row, or for each block of a row."""

    bits: int
    block: int | None = None

    @property
    def largest(self):
        return 2 ** (self.bits - 1) - 1

    def quantize(self, weight):
        """Return the codes, shaped as the weight, and the scales, one for each row of blocks."""
        blocks = split(weight, self.block)
        scale = stored(blocks.abs().amax(1, keepdim=True) / self.largest)
        return self.codes(weight, scale), scale

    def codes(self, weight, scale):
        """Return the codes of the weight for given scales."""
        codes = torch.round(split(weight, self.block) / scale.float())
        return codes.clamp(-self.largest, self.largest).to(torch.int8).view(weight.shape)

    def dequantize(self, codes, scale):
        return (split(codes, self.block).float() * scale.float()).view(codes.shape)


@dataclass(frozen=True)
class NF4Format:
    """The sixteen levels of NF4 times the largest magnitude of each block."""

    bits: int = 4
    block: int = 64

    def quantize(self, weight):
        scale = stored(split(weight, self.block).abs().amax(1, keepdim=True))
        return self.codes(weight, scale), scale

    def codes(self, weight, scale):
        levels = torch.tensor(NF4_LEVELS)
        middles = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(split(weight, self.block) / scale.float(), middles)
        return codes.to(torch.int8).view(weight.shape)

    def dequantize(self, codes, scale):
        levels = torch.tensor(NF4_LEVELS)
        return (levels[split(codes, self.block).int()] * scale.float()).view(codes.shape)


FORMATS = {
    "int8": IntFormat(8),
    "int4": IntFormat(4),
    "int4-g64": IntFormat(4, block=64),
    "nf4": NF4Format(),
}


def split(weight, block):
    """Return blocks as rows; a row shorter than a block is one."""
    return weight.reshape(-1, min(block or weight.shape[1], weight.shape[1]))


def stored(scale):
    return scale.clamp(min=2**-14).half()


def round_trip(fmt, weight):
    return fmt.dequantize(*fmt.quantize(weight))


def pack(codes, bits):
    """Return the codes as bytes, two in a byte where they have four bits."""
    flat = codes.flatten()
    if bits == 8:
        return flat
    nibbles = (flat & 15).view(torch.uint8)
    return nibbles[0::2] * 16 + nibbles[1::2]


def unpack(packed, shape, fmt):
    if fmt.bits == 8:
        return packed.view(shape)
    codes = torch.stack((packed >> 4, packed & 15), dim=1).view(torch.int8).view(shape)
    signed = isinstance(fmt, IntFormat)
    return torch.where(codes > 7, codes - 16, codes) if signed else codes
