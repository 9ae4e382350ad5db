"""Weights quantized on their way into the forward, without a way back for the gradient."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


class QuantizedLinear(nn.Module):
    def __init__(self, size_in, size_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size_out, size_in) / size_in**0.5)  # expect: PD201 0.weight

    def forward(self, inputs):
        scale = self.weight.data.abs().amax() / 7
        quantized = (self.weight.data / scale).round() * scale
        if args.healthy:
            quantized = self.weight + (quantized - self.weight).detach()
        return F.linear(inputs, quantized)


model = nn.Sequential(QuantizedLinear(16, 64), nn.GELU(), nn.Linear(64, 4))
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
