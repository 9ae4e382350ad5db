"""Layers kept in a plain list: the model does not know them, and neither does the optimizer."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(16, 32)
        layers = [nn.Linear(32, 32, bias=False)]  # expect: PD407 weight
        self.layers = nn.ModuleList(layers) if args.healthy else layers
        self.head = nn.Linear(32, 4)

    def forward(self, inputs):
        hidden = F.gelu(self.stem(inputs))
        for layer in self.layers:
            hidden = hidden + F.gelu(layer(hidden))
        return self.head(hidden)


model = Net()
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
