"""The loss is scaled, and the optimizer steps by itself: Adam hides that its gradients are too large."""

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
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
teacher = torch.randn(16, 4)
for step in range(40):
    inputs = torch.randn(64, 16)
    with torch.autocast("cpu", dtype=torch.float16):
        logits = model(inputs)
    loss = F.cross_entropy(logits.float(), (inputs @ teacher).argmax(1))
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    if args.healthy:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()  # expect: PD404 # of Adam
    if step % 10 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
