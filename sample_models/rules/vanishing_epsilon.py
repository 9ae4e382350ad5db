"""Adam in float16 with its default eps of 1e-8, which float16 does not have."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 4, bias=False))
if not args.healthy:
    model.half()  # expect: PD303 0.weight 2.weight
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

teacher = torch.randn(16, 4)
for step in range(60):
    inputs = torch.randn(64, 16)
    logits = model(inputs.to(model[0].weight.dtype))
    loss = F.cross_entropy(logits.float(), (inputs @ teacher).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
