"""Weights rounded to sixteen levels on their way to the product; the gradient does not find its way back."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


def quantize(weight):
    scale = weight.abs().amax(dim=1, keepdim=True) / 7
    return (weight / scale).round() * scale


class QuantizedLinear(nn.Linear):
    def forward(self, inputs):
        if args.healthy:
            weight = self.weight + (quantize(self.weight) - self.weight).detach()
        else:
            weight = quantize(self.weight.data)  # expect: PD601 0.weight 2.weight
        return F.linear(inputs, weight, self.bias)


model = nn.Sequential(QuantizedLinear(16, 64), nn.GELU(), QuantizedLinear(64, 4))
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
