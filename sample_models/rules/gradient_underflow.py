"""Train a deep narrow net under float16 autocast without scaling the loss; --healthy scales it."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
scaler = torch.amp.GradScaler("cpu", enabled=args.healthy)  # expect: PD203 0.* 2.* 4.*
inputs = torch.randn(512, 32)
targets = inputs[:, :8] * 0.01

for _ in range(20):
    with torch.autocast("cpu", dtype=torch.float16):
        outputs = model(inputs)
    loss = 1e-5 * (outputs.float() - targets).square().mean()
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
