"""Rows of unit length, made of the weight's data: the forward pass uses it, and backward does not find it."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


class UnitLinear(nn.Module):
    def __init__(self, size_in, size_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size_out, size_in) / size_in**0.5)

    def forward(self, inputs):
        weight = self.weight if args.healthy else self.weight.data
        return F.linear(inputs, F.normalize(weight, dim=1))  # expect: PD201 0.weight


model = nn.Sequential(UnitLinear(16, 64), nn.GELU(), nn.Linear(64, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
teacher = torch.randn(16, 4)
for step in range(60):
    inputs = torch.randn(64, 16)
    loss = F.cross_entropy(model(inputs), (inputs @ teacher).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
