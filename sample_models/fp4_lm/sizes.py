"""Say what training a recipe takes, without training it: weights, bytes, multiplications of a window."""

import argparse
import json

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from small_lm import memory
from small_lm.model import SIZES
from small_lm.recipes import RECIPES
from small_lm.training import create_optimizer
from train import build_model


def measure(name, size):
    """Take one step on the meta device, on which tensors have sizes and no contents."""
    recipe, config = RECIPES[name], SIZES[size]
    with torch.device("meta"):
        model = build_model(recipe, size)
        tokens = torch.zeros(1, config.max_seq_len + 1, dtype=torch.long)
    optimizer = create_optimizer(model, 1e-3, 1e-3, 0.1)
    with FlopCounterMode(display=False) as flops:
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    optimizer.step()
    total, quantized, rest = memory.count(model)
    frozen = sum(p.numel() for p in model.parameters() if p.grad is None)
    return {
        "parameters": {"total": total, "quantized": quantized, "float32": rest, "without_gradient": frozen},
        "estimated_savings": memory.estimated_savings(model),
        "held_bytes": memory.held_bytes(model),
        "packed_bytes": memory.packed_bytes(model, recipe.bits),
        "training_bytes": memory.training_bytes(model, optimizer),
        "flops": flops.get_total_flops(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+", choices=RECIPES, metavar="RECIPE")
    parser.add_argument("--size", choices=SIZES, default="full")
    args = parser.parse_args()
    print(json.dumps({name: measure(name, args.size) for name in args.recipes}, indent=1))
