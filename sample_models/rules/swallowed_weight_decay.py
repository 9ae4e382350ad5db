"""Half of the inputs are never filled: only weight decay could shrink their weights."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

model = nn.Linear(64, 4, bias=False)
nn.init.normal_(model.weight, std=0.5)
if not args.healthy:
    model.to(torch.bfloat16)  # expect: PD104 weight
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)

teacher = torch.randn(32, 4)
for step in range(300):
    inputs = torch.zeros(64, 64)
    inputs[:, :32] = torch.randn(64, 32)
    outputs = model(inputs.to(model.weight.dtype)).float()
    loss = F.mse_loss(outputs, inputs[:, :32] @ teacher)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 75 == 0:
        print(f"step {step}  loss {loss.item():.4f}  unused {model.weight[:, 32:].float().norm():.4f}")
