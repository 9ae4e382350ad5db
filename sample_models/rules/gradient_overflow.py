"""Clip gradients by a norm that is formed in float16; --healthy forms it in float32."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()


def clip(gradients, limit):
    if args.healthy:
        gradients = [g.float() for g in gradients]
    norm = sum([(g * g).sum() for g in gradients]).sqrt()  # expect: PD204 *.weight* *.bias*
    return [g * (limit / norm).clamp(max=1) for g in gradients]


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1)).half()
masters = [p.detach().float() for p in model.parameters()]
optimizer = torch.optim.SGD(masters, lr=1e-3, momentum=0.9)
inputs = torch.randn(256, 16)
targets = inputs[:, :1] * 30

for _ in range(20):
    loss = (model(inputs.half()).float() - targets).square().mean()
    for p in model.parameters():
        p.grad = None
    (loss * 64).backward()
    clipped = clip([p.grad for p in model.parameters()], 64 * 5.0)
    for master, gradient in zip(masters, clipped, strict=True):
        master.grad = gradient.float() / 64
    optimizer.step()
    with torch.no_grad():
        for master, p in zip(masters, model.parameters(), strict=True):
            p.copy_(master)
