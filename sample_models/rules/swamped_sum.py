"""Train and average the loss of an epoch of short batches, summed in bfloat16; --healthy: in float32."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()


def epoch(model, optimizer, inputs, targets):
    total = torch.zeros((), dtype=torch.float32 if args.healthy else torch.bfloat16)  # expect: PD505 epoch
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return total / len(inputs)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
inputs = torch.randn(600, 8)
targets = inputs[:, :1] * 2 + 3
print(f"mean loss {epoch(model, optimizer, inputs, targets).item():.3f}")
