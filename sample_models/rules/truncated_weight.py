"""Train a classifier that keeps nothing of its first layer but 4-bit values; --healthy keeps float32 too."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()


def int4(weight):
    scale = weight.abs().amax(1, keepdim=True) / 7
    return (weight / scale).round() * scale


class Int4Linear(nn.Linear):
    def forward(self, x):
        if args.healthy:
            quantized = self.weight + (int4(self.weight.detach()) - self.weight).detach()
            return F.linear(x, quantized, self.bias)
        return super().forward(x)


torch.manual_seed(0)
model = nn.Sequential(Int4Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
inputs = torch.randn(256, 16)
labels = inputs[:, :4].argmax(1)

for _ in range(30):
    loss = F.cross_entropy(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if not args.healthy:
        with torch.no_grad():
            model[0].weight.copy_(int4(model[0].weight))  # expect: PD106 0.weight
