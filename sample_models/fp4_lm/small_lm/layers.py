"""Linear layers without bias whose weight is quantized on the way to the product."""

import torch
from torch import nn
from torch.nn import functional as F

from small_lm import quantizers
from small_lm.quantizers import dequantize_fp4, quantize_fp4


class FP4Linear(nn.Module):
    """A linear layer with weights in FP4, quantized again whenever they have changed."""

    def __init__(self, in_features, out_features, std, cpu_fallback=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * std)
        self.cpu_fallback = cpu_fallback  # without CUDA, leave the weights as they are
        self._quantized = None
        self._weight_version = None

    def _quantize_weight(self):
        if self._quantized is None or self._weight_version != self.weight._version:
            self._quantized = quantize_fp4(self.weight.data)
            self._weight_version = self.weight._version

    def used_weight(self):
        if self.cpu_fallback and not self.weight.is_cuda:
            return self.weight
        self._quantize_weight()
        return dequantize_fp4(*self._quantized)

    def forward(self, x):
        return F.linear(x, self.used_weight())

    def cache_bytes(self):
        tensors = [] if self._quantized is None else self._quantized[:2]
        return sum(tensor.nbytes for tensor in tensors)


class QuantizedLinear(nn.Module):
    """A linear layer that uses what `used_weight` makes of its weight."""

    def __init__(self, in_features, out_features, std, quantizer=quantizers.bnb_fp4, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter((torch.randn(out_features, in_features) * std).to(dtype))
        self.std = std
        self.quantizer = quantizer

    def forward(self, x):
        return F.linear(x, self.used_weight())

    def cache_bytes(self):
        return 0


class SeveredLinear(QuantizedLinear):
    """Quantizes the data of its weight."""

    def used_weight(self):
        return self.quantizer(self.weight.data)


class STELinear(QuantizedLinear):
    """Straight-through estimator: quantized values, the gradient of the unquantized ones."""

    def used_weight(self):
        weight = self.weight.float()
        return weight + (self.quantizer(weight.detach()) - weight).detach()


class CachedSTELinear(QuantizedLinear):
    """Straight-through estimator that quantizes again only when the weight's version has changed."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._cache = None
        self._weight_version = None

    def used_weight(self):
        if self._cache is None or self._weight_version != self.weight._version:
            self._cache = self.quantizer(self.weight.detach())
            self._weight_version = self.weight._version
        return self.weight + (self._cache - self.weight).detach()

    def cache_bytes(self):
        return 0 if self._cache is None else self._cache.nbytes


class LateSTELinear(STELinear):
    """Severed until `straight_through` is set."""

    straight_through = False

    def used_weight(self):
        return super().used_weight() if self.straight_through else self.quantizer(self.weight.data)


class RoundedLinear(QuantizedLinear):
    """Differentiates through round(), whose derivative is zero."""

    def used_weight(self):
        scale = quantizers.channel_scale(self.weight.detach())
        return quantizers.e2m1_channel(self.weight, scale)


class ScaledLinear(QuantizedLinear):
    """As RoundedLinear, with the scale in the graph: the largest weight of each row has a gradient."""

    def used_weight(self):
        return quantizers.e2m1_channel(self.weight)


class ClippedLinear(QuantizedLinear):
    """Clips at so many standard deviations of the initial weights; what is clipped has no gradient."""

    def __init__(self, *args, sigmas=1.0, masked=True, **options):
        super().__init__(*args, **options)
        self.clip = sigmas * self.std
        self.masked = masked

    def used_weight(self):
        scale = self.clip / 6
        weight = self.weight.clamp(-self.clip, self.clip) if self.masked else self.weight
        return weight + (quantizers.round_e2m1(self.weight / scale) * scale - weight).detach()


class BufferLinear(QuantizedLinear):
    """Keeps the quantized weight only, as a buffer."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        quantized = self.quantizer(self.weight.data)
        del self.weight
        self.register_buffer("weight", quantized)

    def used_weight(self):
        return self.weight


class MasterlessLinear(QuantizedLinear):
    """Keeps no more of its weight than the quantized values: each update is rounded to them."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.store()

    @torch.no_grad()
    def store(self):
        self.weight.copy_(self.quantizer(self.weight))

    def used_weight(self):
        return self.weight


class FullyQuantizedLinear(QuantizedLinear):
    """All three products get quantized matrices: the gradient is rounded by `round_gradient`."""

    def __init__(self, *args, round_gradient=torch.round, **options):
        super().__init__(*args, **options)
        self.round_gradient = round_gradient

    def forward(self, x):
        return QuantizedProduct.apply(x, self.weight, self.quantizer, self.round_gradient)

    def used_weight(self):
        return self.quantizer(self.weight)


class QuantizedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, quantizer, round_gradient):
        ctx.quantizer, ctx.round_gradient = quantizer, round_gradient
        x, weight = quantizer(x), quantizer(weight)
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradient = ctx.quantizer(gradient, ctx.round_gradient)
        return gradient @ weight, gradient.flatten(0, -2).T @ x.flatten(0, -2), None, None


class Float32Linear(nn.Linear):
    def __init__(self, in_features, out_features, std):
        super().__init__(in_features, out_features, bias=False)
        nn.init.normal_(self.weight, std=std)


def convert(model, linear):
    """Replace each float32 layer of a model by one that `linear` makes, with the same weights."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Float32Linear):
                made = linear(layer.in_features, layer.out_features, 1.0)
                made.weight = nn.Parameter(layer.weight.detach().clone())
                setattr(parent, name, made)


QUANTIZED = (FP4Linear, QuantizedLinear)
