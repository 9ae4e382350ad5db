"""A new head for a new task, made after the optimizer."""

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
if args.healthy:
    model[2] = nn.Linear(64, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)  # expect: PD406 AdamW.group0* 2.*
if not args.healthy:
    model[2] = nn.Linear(64, 4)

teacher = torch.randn(16, 4)
for step in range(60):
    inputs = torch.randn(64, 16)
    loss = F.cross_entropy(model(inputs), (inputs @ teacher).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
