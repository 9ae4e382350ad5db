"""Sum the gradients of 256 micro-batches in bfloat16 for each step; --healthy sums in float32."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()
MICRO_BATCHES = 512

torch.manual_seed(0)
model = nn.Linear(16, 4).to(torch.bfloat16)  # expect: PD205 weight bias
masters = [p.detach().float().clone() for p in model.parameters()]
sums = [torch.zeros_like(master) for master in masters]
optimizer = torch.optim.SGD(masters, lr=0.05)

for _ in range(3):
    for _ in range(MICRO_BATCHES):
        x = torch.rand(1, 16)
        loss = (model(x.bfloat16()).float() - x[:, :4] - 3).square().mean() / MICRO_BATCHES
        loss.backward()
        if args.healthy:
            for total, p in zip(sums, model.parameters(), strict=True):
                total += p.grad.float()
                p.grad = None
    for master, total, p in zip(masters, sums, model.parameters(), strict=True):
        master.grad = total.clone() if args.healthy else p.grad.float()
        total.zero_()
        p.grad = None
    optimizer.step()
    with torch.no_grad():
        for master, p in zip(masters, model.parameters(), strict=True):
            p.copy_(master)
