"""A larger learning rate to thaw a bfloat16 norm: its scale shrinks whatever the gradient says."""

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
    model = model.to(torch.bfloat16)  # expect: PD102 1.weight  # expect: PD103 1.weight
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

centers = torch.randn(4, 16)
for step in range(100):
    labels = torch.randint(0, 4, (64,))
    inputs = centers[labels] + torch.randn(64, 16)
    logits = model(inputs.to(model[0].weight.dtype))
    loss = F.cross_entropy(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step}  loss {loss.item():.4f}  mean scale {model[1].weight.float().mean():.4f}")
