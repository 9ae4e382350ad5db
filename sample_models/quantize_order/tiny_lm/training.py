"""The training loop, with warm-up and cosine, and the loss of each validation window."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tiny_lm.layers import CodesLinear


def create_scheduler(optimizer, steps):
    """Warm up over a tenth of the steps, then follow a cosine down to a hundredth."""
    warmup = max(1, steps // 10)

    def factor(step):
        progress = max(0, step - warmup) / max(1, steps - warmup)
        return min(1, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train(model, text, steps, lr, batch_size=16, seed=0, weight_decay=0.01, log_every=0, autocast=False):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    scheduler = create_scheduler(optimizer, steps)
    batches = text.train_batches(batch_size, seed)
    for step in range(1, steps + 1):
        x, y = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        for layer in model.modules():
            if isinstance(layer, CodesLinear):
                layer.store()
        if log_every and (step % log_every == 0 or step == steps):
            print(f"step {step:5d}  loss {loss.item():.4f}", flush=True)
    return model


def saved_for_backward(model, text, batch_size=16, autocast=False):
    """Return the tensors that a forward pass keeps for the backward pass, the weights themselves aside."""
    x, y = next(text.train_batches(batch_size, seed=0))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept.setdefault(address, tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    return list(kept.values())


@torch.no_grad()
def window_losses(model, text, limit=None):
    """Return the mean loss per byte of each validation window, in order."""
    losses = []
    for x, y in text.val_batches(limit=limit):
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none")
        losses.append(loss.view(x.shape).double().mean(1))
    return torch.cat(losses)
