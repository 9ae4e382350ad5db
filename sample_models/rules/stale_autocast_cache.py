"""An autocast region around the whole epoch: the forward pass keeps the casts of the first step."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
teacher = torch.randn(16, 4)
batches = [torch.randn(64, 16) for _ in range(40)]
cached = not args.healthy
with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):  # expect: PD408 ?.weight ?.bias
    for step, inputs in enumerate(batches):
        labels = (inputs.float() @ teacher).argmax(1)
        loss = F.cross_entropy(model(inputs).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}  loss {loss.item():.4f}")
