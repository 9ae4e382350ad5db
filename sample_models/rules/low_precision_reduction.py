"""A root mean square taken in float16: squares above 65,504 are inf, and the normalised rows are zero."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


class Normalize(nn.Module):
    def forward(self, inputs):
        values = inputs.float() if args.healthy else inputs
        mean_square = values.square().mean(-1, keepdim=True)  # expect: PD503 1
        return (values * torch.rsqrt(mean_square + 1e-5)).to(inputs.dtype)


model = nn.Sequential(nn.Linear(16, 64), Normalize(), nn.Linear(64, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
teacher = torch.randn(16, 4)
for step in range(40):
    inputs = 500 * torch.randn(64, 16)
    with torch.autocast("cpu", dtype=torch.float16):
        logits = model(inputs)
    loss = F.cross_entropy(logits.float(), (inputs @ teacher).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
