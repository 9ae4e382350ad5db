"""Train with a moving average of the weights that is kept in bfloat16; --healthy keeps it in float32."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()


class MovingAverage:
    def __init__(self, model, decay, dtype):
        self.decay = decay
        self.values = [p.detach().to(dtype).clone() for p in model.parameters()]  # expect: PD304 update

    @torch.no_grad()
    def update(self, model):
        for value, parameter in zip(self.values, model.parameters(), strict=True):
            value.lerp_(parameter.to(value.dtype), 1 - self.decay)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))
average = MovingAverage(model, 0.999, torch.float32 if args.healthy else torch.bfloat16)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
inputs = torch.randn(256, 16)
labels = inputs[:, :4].argmax(1)

for _ in range(60):
    loss = F.cross_entropy(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    average.update(model)
