"""Fine-tuning in bfloat16 with a small learning rate: only the small weights follow."""

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
    model.bfloat16()  # expect: PD102 0.weight 2.weight
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

weight = torch.randn(16, 4)
for step in range(100):
    inputs = torch.randn(64, 16)
    targets = (inputs @ weight).argmax(1)
    logits = model(inputs.to(model[0].weight.dtype))
    loss = F.cross_entropy(logits.float(), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
