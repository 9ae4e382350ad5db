"""Quantized weights are kept for the next forward pass, under a key that no optimizer step changes."""

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
    def __init__(self, size_in, size_out):
        super().__init__(size_in, size_out)
        self.kept = {}

    def quantized(self):
        key = self.weight._version if args.healthy else self.weight.data_ptr()
        if key not in self.kept:
            weight = self.weight.detach()
            scale = weight.abs().amax(dim=1, keepdim=True) / 7
            self.kept = {key: (weight / scale).round() * scale}  # expect: PD602 0.weight 2.weight
        return self.weight + (self.kept[key] - self.weight).detach()

    def forward(self, inputs):
        return F.linear(inputs, self.quantized(), self.bias)


model = nn.Sequential(QuantizedLinear(16, 64), nn.GELU(), QuantizedLinear(64, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, foreach=False)
teacher = torch.randn(16, 4)
for step in range(60):
    inputs = torch.randn(64, 16)
    loss = F.cross_entropy(model(inputs), (inputs @ teacher).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
