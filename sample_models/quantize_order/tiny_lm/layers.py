"""The linear layers that are trained when a model is, or is to be, quantized."""

import torch
from torch import nn
from torch.nn import functional as F

from tiny_lm.quantizers import pack, round_trip, unpack

RANK, SCALING = 8, 2.0  # of the adapters


class QATLinear(nn.Module):
    """Uses the rounded weight; the gradient goes straight through to the float32 weight."""

    def __init__(self, weight, fmt):
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.fmt = fmt

    def forward(self, x):
        rounded = round_trip(self.fmt, self.weight.detach())
        return F.linear(x, self.weight + (rounded - self.weight).detach())


class LoRALinear(nn.Module):
    """A frozen weight, quantized if a format is given, and two thin float32 matrices that are trained."""

    def __init__(self, weight, fmt=None):
        super().__init__()
        rows, columns = weight.shape
        self.shape, self.fmt = weight.shape, fmt
        if fmt is None:
            self.register_buffer("frozen", weight.clone())
        else:
            codes, scale = fmt.quantize(weight)
            self.register_buffer("packed", pack(codes, fmt.bits))
            self.register_buffer("scale", scale)
        self.lora_a = nn.Parameter(torch.randn(RANK, columns) / columns**0.5)
        self.lora_b = nn.Parameter(torch.zeros(rows, RANK))

    def base(self):
        if self.fmt is None:
            return self.frozen
        return self.fmt.dequantize(unpack(self.packed, self.shape, self.fmt), self.scale)

    def delta(self):
        return SCALING * self.lora_b @ self.lora_a

    def forward(self, x):
        return F.linear(x, self.base()) + SCALING * F.linear(F.linear(x, self.lora_a), self.lora_b)


class CodesLinear(nn.Module):
    """Keeps nothing but what its codes can say: each update is rounded to them, the scales stay."""

    def __init__(self, weight, fmt):
        super().__init__()
        codes, scale = fmt.quantize(weight)
        self.weight = nn.Parameter(fmt.dequantize(codes, scale))
        self.fmt = fmt
        self.register_buffer("scale", scale)

    @torch.no_grad()
    def store(self):
        codes = self.fmt.codes(self.weight, self.scale)
        self.weight.copy_(self.fmt.dequantize(codes, self.scale))

    def forward(self, x):
        return F.linear(x, self.weight)


def linears(model):
    """Return (name, layer) of the layers that are quantized: all matrices of the blocks."""
    kinds = (nn.Linear, QATLinear, LoRALinear, CodesLinear)
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)]


def replace_linears(model, make):
    """Put make(weight) for each linear layer of a model in float32."""
    for name, layer in linears(model):
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, make(layer.weight.detach()))
    return model
