"""A classifier cast to bfloat16: the scale of its norm starts at 1.0 and stays there."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

model = nn.Sequential(nn.Linear(16, 64, bias=False), nn.RMSNorm(64), nn.GELU(), nn.Linear(64, 4, bias=False))
if not args.healthy:
    model = model.to(torch.bfloat16)  # expect: PD101 1.weight
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

centers = torch.randn(4, 16)
for step in range(100):
    labels = torch.randint(0, 4, (64,))
    inputs = centers[labels] + 0.5 * torch.randn(64, 16)
    logits = model(inputs.to(model[0].weight.dtype))
    loss = F.cross_entropy(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
