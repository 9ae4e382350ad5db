"""Losses of several tasks, collected as numbers and averaged."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
teachers = [torch.randn(8, 2) for _ in range(3)]

for step in range(60):
    losses = []
    for teacher in teachers:
        inputs = torch.randn(32, 8)
        losses.append(F.mse_loss(model(inputs), inputs @ teacher))
    if args.healthy:
        loss = torch.stack(losses).mean()
    else:
        numbers = [loss.item() for loss in losses]
        loss = torch.tensor(numbers, requires_grad=True).mean()  # expect: PD202 0.* 2.*
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
