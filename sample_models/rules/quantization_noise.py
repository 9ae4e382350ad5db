"""A few large weights, one scale for the whole matrix: next to them the others are quantized to zero."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


class QuantizedLinear(nn.Linear):
    def forward(self, inputs):
        blocks = self.weight.reshape(-1, 16) if args.healthy else self.weight.reshape(1, -1)
        scale = blocks.abs().amax(dim=1, keepdim=True) / 7
        quantized = ((blocks / scale).round() * scale).view_as(self.weight)  # expect: PD603 0.weight
        return F.linear(inputs, self.weight + (quantized - self.weight).detach(), self.bias)


model = nn.Sequential(QuantizedLinear(64, 64), nn.GELU(), QuantizedLinear(64, 4))
with torch.no_grad():
    model[0].weight[:2, 32:48] *= 20  # as features of large language models have them
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
teacher = torch.randn(64, 4)
for step in range(60):
    inputs = torch.randn(64, 64)
    loss = F.cross_entropy(model(inputs), (inputs @ teacher).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
