"""A loss in bfloat16 on one and the same batch: most steps leave it the number it was."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
inputs = torch.randn(256, 16)
labels = torch.randint(10, (256,))
for step in range(120):
    losses = F.cross_entropy(model(inputs), labels, reduction="none")
    loss = losses.mean() if args.healthy else losses.mean().bfloat16()
    optimizer.zero_grad()
    loss.backward()  # expect: PD507 backward
    optimizer.step()
    if step % 30 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
