"""What can be trained: the baselines, FP4 as reported, and what else was tried to find out why."""

from dataclasses import dataclass
from functools import partial

import torch

from small_lm import layers, quantizers
from small_lm.layers import STELinear, SeveredLinear

PARTS = ("attention", "ffn", "head")


@dataclass
class Recipe:
    about: str
    linear: type = layers.Float32Linear
    quantized: tuple = PARTS  # parts of the model that use `linear`
    tied: bool = False  # embedding and head share their weight
    converted: type = None  # what the float32 layers are replaced by once the model is made
    lr: float = 1.0  # factor of the learning rate
    fused: bool = False  # the fused AdamW
    bits: float = 32  # per quantized weight, scales included, when packed


def severed(about, quantizer, bits):
    return Recipe(f"{about}, no gradient", partial(SeveredLinear, quantizer=quantizer), bits=bits)


def ste(about, quantizer, bits, **options):
    return Recipe(f"{about}, straight-through", partial(STELinear, quantizer=quantizer), bits=bits, **options)


def masterless(about, quantizer, bits):
    linear = partial(layers.MasterlessLinear, quantizer=quantizer)
    return Recipe(f"{about}, no float32 weights beside", linear, bits=bits)


def full(about, quantizer, bits, **options):
    linear = partial(layers.FullyQuantizedLinear, quantizer=quantizer, **options)
    return Recipe(f"{about}: weights, activations and gradients", linear, bits=bits)


stochastic_int8 = partial(quantizers.int8, rounding=quantizers.stochastic)
stochastic_nvfp4 = partial(quantizers.nvfp4, rounding=quantizers.stochastic)
bf16_latent = partial(STELinear, dtype=torch.bfloat16)

RECIPES = {
    "baseline": Recipe("float32, embedding and head tied", tied=True),
    "untied": Recipe("float32, embedding and head apart as in the FP4 model"),
    # As reported, and what changes one thing about it.
    "fp4-reported": Recipe("FP4 as reported", layers.FP4Linear, bits=4.5),
    "severed-none": severed("not quantized", quantizers.none, 32),
    "severed-int8": severed("INT8 per channel", quantizers.int8, 8),
    "severed-nvfp4": severed("NVFP4", quantizers.nvfp4, 4.5),
    "severed-retied": Recipe("FP4 as reported, tied", layers.FP4Linear, tied=True, bits=4.5),
    "severed-head": Recipe("FP4 as reported, head only", layers.FP4Linear, ("head",), bits=4.5),
    "severed-blocks": Recipe(
        "FP4 as reported, blocks only", layers.FP4Linear, ("attention", "ffn"), bits=4.5
    ),
    "severed-low-lr": Recipe("FP4 as reported, lr x0.1", layers.FP4Linear, lr=0.1, bits=4.5),
    "severed-high-lr": Recipe("FP4 as reported, lr x10", layers.FP4Linear, lr=10, bits=4.5),
    # Quantized with a gradient.
    "ste-bnb-fp4": ste("FP4 of bitsandbytes", quantizers.bnb_fp4, 4.5),
    "ste-nvfp4": ste("NVFP4", quantizers.nvfp4, 4.5),
    "ste-mxfp4": ste("MXFP4", quantizers.mxfp4, 4.25),
    "ste-nf4": ste("NF4", quantizers.nf4, 4.5),
    "ste-e2m1-tensor": ste("E2M1, one scale per matrix", quantizers.e2m1_tensor, 4),
    "ste-int8": ste("INT8 per channel", quantizers.int8, 8),
    "ste-int4": ste("INT4 per channel", quantizers.int4, 4),
    "ste-int2": ste("INT2 per channel", quantizers.int2, 2),
    "ste-fp8": ste("FP8 E4M3, one scale per matrix", quantizers.fp8, 8),
    "ste-retied": ste("FP4 of bitsandbytes, tied", quantizers.bnb_fp4, 4.5, tied=True),
    "ste-late": Recipe("FP4, straight-through from half of the updates on", layers.LateSTELinear, bits=4.5),
    "ste-float32-head": ste("FP4 but for the head", quantizers.bnb_fp4, 4.5, quantized=("attention", "ffn")),
    "ste-float32-attention": ste("FP4 but for attention", quantizers.bnb_fp4, 4.5, quantized=("ffn", "head")),
    "ste-float32-ffn": ste(
        "FP4 but for the feed-forward layers", quantizers.bnb_fp4, 4.5, quantized=("attention", "head")
    ),
    # All three products in four bits.
    "full-nvfp4": full("NVFP4", quantizers.nvfp4, 4.5),
    "full-nvfp4-stochastic": full("NVFP4", quantizers.nvfp4, 4.5, round_gradient=quantizers.stochastic),
    "full-e2m1-tensor": full("E2M1, one scale per matrix", quantizers.e2m1_tensor, 4),
    "full-mxfp4": full("MXFP4", quantizers.mxfp4, 4.25),
    "full-mxfp4-stochastic": full("MXFP4", quantizers.mxfp4, 4.25, round_gradient=quantizers.stochastic),
    # Other ways to go wrong.
    "stale-cache": Recipe(
        "FP4, straight-through, cached by a version that the fused AdamW leaves alone",
        layers.CachedSTELinear,
        fused=True,
        bits=4.5,
    ),
    "buffer": Recipe("FP4, quantized weights in a buffer", layers.BufferLinear, bits=4.5),
    "zero-gradient": Recipe("E2M1 per channel through round()", layers.RoundedLinear, bits=4),
    "scale-in-graph": Recipe("as zero-gradient, the scale differentiated", layers.ScaledLinear, bits=4),
    "low-lr": ste("FP4, lr x0.001: no code changes", quantizers.bnb_fp4, 4.5, lr=0.001),
    "low-lr-untied": Recipe("float32, lr x0.001: the twin of low-lr", lr=0.001),
    "broken-tie": Recipe(
        "float32, tied, each linear layer then replaced by an FP4 one",
        tied=True,
        converted=partial(STELinear, quantizer=quantizers.bnb_fp4),
        bits=4.5,
    ),
    "no-scale": ste("E2M1 without a scale", quantizers.e2m1_unscaled, 4),
    "clip-1-sigma": Recipe("E2M1 clipped at 1 sigma, masked gradient", layers.ClippedLinear, bits=4),
    "clip-2-sigma": Recipe(
        "E2M1 clipped at 2 sigma, masked gradient", partial(layers.ClippedLinear, sigmas=2), bits=4
    ),
    "clip-passed-through": Recipe(
        "E2M1 clipped at 1 sigma, gradient passed through",
        partial(layers.ClippedLinear, masked=False),
        bits=4,
    ),
    "bf16-latent": Recipe("FP4, straight-through, weights kept in bfloat16", bf16_latent, bits=4.5),
    "bf16-latent-low-lr": Recipe("as bf16-latent, lr x0.1", bf16_latent, lr=0.1, bits=4.5),
    "ste-low-lr": ste("FP4 of bitsandbytes, lr x0.1", quantizers.bnb_fp4, 4.5, lr=0.1),
    "no-master-int8": masterless("INT8", quantizers.int8, 8),
    "no-master-int8-stochastic": masterless("INT8, rounded stochastically", stochastic_int8, 8),
    "no-master-nvfp4": masterless("NVFP4", quantizers.nvfp4, 4.5),
    "no-master-nvfp4-stochastic": masterless("NVFP4, rounded stochastically", stochastic_nvfp4, 4.5),
}
