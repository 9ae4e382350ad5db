"""Gradients are clipped to a norm of 1 while they are 65,536 times too large."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scaler = torch.amp.GradScaler("cpu")
teacher = torch.randn(16, 4)


def step(inputs):
    with torch.autocast("cpu", dtype=torch.float16):
        logits = model(inputs)
    loss = F.cross_entropy(logits.float(), (inputs @ teacher).argmax(1))
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    if args.healthy:
        scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # expect: PD403 step
    scaler.step(optimizer)
    scaler.update()
    return loss.item()


for number in range(40):
    loss = step(torch.randn(64, 16))
    if number % 10 == 0:
        print(f"step {number}  loss {loss:.4f}")
