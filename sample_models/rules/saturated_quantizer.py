"""A quantizer whose scale was measured once, on weights much smaller than those that it gets now."""

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
        self.register_buffer("amax", self.weight.detach().abs().amax())
        nn.init.normal_(self.weight, std=2 * size_in**-0.5)

    def forward(self, inputs):
        amax = self.weight.detach().abs().amax() if args.healthy else self.amax
        scale = amax / 7
        quantized = (self.weight / scale).round().clamp(-7, 7) * scale  # expect: PD604 0.weight 2.weight
        return F.linear(inputs, self.weight + (quantized - self.weight).detach(), self.bias)


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
