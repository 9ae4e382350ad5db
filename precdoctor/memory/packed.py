"""A linear layer whose products read four-bit codes, with a float32 latent weight behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from precdoctor.formats import E8M0, BlockFormat
from precdoctor.numerics import Quantized, Scales, dequantize, quantize

#: by the width of the stored scale: e4m3fn as torch has it; powers of two by their exponent
_BIAS = 127


class PackedLinear(nn.Module):
    """Holds codes, two per byte, and scales, and refreshes them from the latent weight in each forward.

    The gradient of the codes goes to the latent weight, straight through. Nothing of the weight's size is
    kept for the backward pass: it unpacks the codes again.
    """

    packed: Tensor
    scales: Tensor
    #: a scalar, or nothing
    tensor_scale: Any

    def __init__(self, linear: nn.Linear, fmt: BlockFormat) -> None:
        super().__init__()
        self.weight, self.fmt = linear.weight, fmt
        self.bias: nn.Parameter | None = linear.bias
        count = self.weight.numel()
        grid = fmt.grid(tuple(self.weight.shape))
        device = self.weight.device
        self.register_buffer("packed", torch.empty((count + 1) // 2, dtype=torch.uint8, device=device))
        dtype = _scale_dtype(fmt)
        self.register_buffer("scales", torch.empty(grid.blocks, dtype=dtype, device=device))
        shared = torch.empty((), device=device) if fmt.has_tensor_scale else None
        self.register_buffer("tensor_scale", shared)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with the weight that the codes stand for."""
        self._refresh()
        y: Tensor = _Product.apply(x, self.weight, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def _refresh(self) -> None:
        quantized = quantize(self.weight, self.fmt)
        codes = quantized.codes.flatten()
        if codes.numel() % 2:
            codes = torch.cat([codes, codes.new_zeros(1)])
        self.packed.copy_(codes[0::2] * 16 + codes[1::2])
        block = quantized.scales.block
        self.scales.copy_(block.log2().add_(_BIAS) if self.fmt.scale is E8M0 else block)
        if self.tensor_scale is not None and quantized.scales.tensor is not None:
            self.tensor_scale.copy_(quantized.scales.tensor)

    @torch.no_grad()
    def unpacked(self) -> Tensor:
        """Return the values that codes and scales stand for."""
        codes = torch.stack((self.packed >> 4, self.packed & 15), dim=1).flatten()
        codes = codes[: self.weight.numel()].view(self.weight.shape)
        block = self.scales.float()
        if self.fmt.scale is E8M0:
            block = block.sub_(_BIAS).exp2_()
        scales = Scales(block=block, tensor=self.tensor_scale)
        return dequantize(Quantized(format=self.fmt, codes=codes, scales=scales))


class _Product(torch.autograd.Function):
    """x times the unpacked weight, of which nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return nn.functional.linear(x, layer.unpacked())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x,) = ctx.saved_tensors
        of_input = gradient @ ctx.layer.unpacked() if ctx.needs_input_grad[0] else None
        rows = gradient.flatten(0, -2)
        of_weight = rows.T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return of_input, of_weight, None


def pack_linears(model: nn.Module, fmt: BlockFormat) -> nn.Module:
    """Replace the model's linear layers, in place; those that share their weight with an embedding stay."""
    look_ups = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and id(layer.weight) not in look_ups and name:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, PackedLinear(layer, fmt))
    return model


def packed_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that `pack_linears` would pack."""
    look_ups = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = {id(m.weight) for name, m in model.named_modules() if type(m) is nn.Linear and name}
    return found - look_ups


def _scale_dtype(fmt: BlockFormat) -> torch.dtype:
    if fmt.scale is E8M0:
        return torch.uint8
    return torch.float8_e4m3fn if fmt.scale.bits == 8 else torch.float32
