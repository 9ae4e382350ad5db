"""A classifier in bfloat16, or so its author believes: the region is for a device that is not there."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

device = torch.device("cpu")
model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 4)).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
teacher = torch.randn(16, 4)
kind = device.type if args.healthy else "xpu"
for step in range(40):
    inputs = torch.randn(64, 16, device=device)
    with torch.autocast(kind, dtype=torch.bfloat16):  # expect: PD401 autocast(xpu,?bfloat16)
        logits = model(inputs)
    loss = F.cross_entropy(logits.float(), (inputs @ teacher).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
