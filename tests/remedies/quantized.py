"""Tiny programs whose weights are quantized in the forward pass."""

from __future__ import annotations

#: {used} makes what a layer uses of its weight
PROGRAM = """
import torch
from torch import nn
from torch.nn import functional as F
torch.manual_seed(0)
torch.set_num_threads(1)

def quantize(w, largest=7):
    scale = w.abs().amax() / largest
    return (w / scale).round() * scale

class Layer(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * 0.3)
        self.cache = None

    def used(self):
        {used}

    def forward(self, x):
        return {product}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(8))
        self.inner, self.outer = Layer(8, 32), Layer(32, 4)

    def forward(self, x):
        return self.outer(torch.relu(self.inner(x + self.shift)))

model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2{options})
data = torch.Generator().manual_seed(1)
for step in range({steps}):
    x = torch.randn(16, 8, generator=data)
    loss = (model(x) - x[:, :4]).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    {after}
"""
LINEAR = "F.linear(x, self.used())"
STE = "return self.weight + (quantize(self.weight.detach()) - self.weight).detach()"
CUT = "return quantize(self.weight.data)"


def program(
    used: str = STE,
    *,
    product: str = LINEAR,
    options: str = "",
    after: str = "pass",
    steps: int = 12,
) -> str:
    """Return a program; ``after`` stands after each step."""
    lines = used.replace("\n", "\n        ")
    return PROGRAM.format(used=lines, product=product, options=options, after=after, steps=steps)
