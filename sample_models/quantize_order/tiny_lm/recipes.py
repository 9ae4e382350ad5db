"""How a pretrained model is fine-tuned."""

import copy

import torch

from tiny_lm.layers import CodesLinear, LoRALinear, QATLinear, linears, replace_linears
from tiny_lm.quantizers import round_trip

RECIPES = {
    "finetune": "all weights in float32; rounded afterwards if a format is given",
    "finetune-lora": "adapters on frozen float32 weights, merged; rounded afterwards if a format is given",
    "qat": "weights rounded in each forward pass, gradient straight through to the float32 weights",
    "lora": "adapters on frozen quantized weights",
    "dequantized": "all weights in float32, from the quantized ones; stays float32",
    "codes": "the quantized weights themselves: each update is rounded to them",
    "autocast": "all weights in float32, the operations that autocast chooses in bfloat16",
    "bfloat16": "all weights, operations and updates in bfloat16",
}


# these need a format; in the others one may be given for what is stored in the end
NEED_FORMAT = ("qat", "lora", "dequantized", "codes")


def prepare(base, recipe, fmt=None):
    """Return a copy of the pretrained model, ready for its fine-tuning."""
    model = copy.deepcopy(base)
    if recipe in ("lora", "finetune-lora"):
        model.requires_grad_(False)
        return replace_linears(model, lambda weight: LoRALinear(weight, fmt if recipe == "lora" else None))
    if recipe == "qat":
        return replace_linears(model, lambda weight: QATLinear(weight, fmt))
    if recipe == "codes":
        return replace_linears(model, lambda weight: CodesLinear(weight, fmt))
    if recipe == "bfloat16":
        return model.bfloat16()
    if recipe == "dequantized":
        with torch.no_grad():
            for _, layer in linears(model):
                layer.weight.copy_(round_trip(fmt, layer.weight))
    return model


def learning_rate(recipe, d_model):
    """Adapters start at zero and take larger steps."""
    return 1e-2 if recipe in ("lora", "finetune-lora") else 2e-3 * (64 / d_model) ** 0.5


def pretraining_rate(d_model):
    return 6e-3 * (64 / d_model) ** 0.6
