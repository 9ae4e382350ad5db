"""A checkpoint of a late bfloat16 training: its next update would leave most weights where they are."""
# diff with: state.pt

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 4))
if not args.healthy:
    model = model.to(torch.bfloat16)  # expect: PD703 0.weight 0.bias 2.weight
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=1e-5)
teacher = torch.randn(32, 4)

for _ in range(99):
    inputs = torch.randn(64, 32)
    logits = model(inputs.to(model[0].weight.dtype)).float()
    loss = F.cross_entropy(logits, (inputs @ teacher).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "state.pt")
