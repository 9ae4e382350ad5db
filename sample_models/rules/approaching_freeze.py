"""Healthy at the start: the schedule will bring the updates below half an ulp."""

# scan with: --steps 40
import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

model = nn.Sequential(nn.Linear(16, 64, bias=False), nn.Tanh(), nn.Linear(64, 4, bias=False))
if not args.healthy:
    model.to(torch.bfloat16)  # expect: PD105 0.weight 2.weight
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=600)

weight = torch.randn(16, 4)
for step in range(600):
    inputs = torch.randn(64, 16)
    targets = (inputs @ weight).argmax(1)
    logits = model(inputs.to(model[0].weight.dtype))
    loss = F.cross_entropy(logits.float(), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step % 150 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
