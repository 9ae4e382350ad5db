"""A contrastive loss whose exponentials are formed by hand: exp(1 / 0.07) is beyond float16."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


def contrast(first, second, temperature=0.07):
    logits = first @ second.T / temperature
    if args.healthy:
        return F.cross_entropy(logits.float(), torch.arange(len(logits)))
    weights = logits.exp()  # expect: PD501 contrast
    return -(weights.diagonal() / weights.sum(1)).log().mean()


encoder = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
for step in range(40):
    inputs = torch.randn(32, 16)
    with torch.autocast("cpu", dtype=torch.float16):
        views = [F.normalize(encoder(inputs + 0.1 * torch.randn_like(inputs)), dim=1) for _ in range(2)]
        loss = contrast(*views)
    optimizer.zero_grad()
    loss.float().backward()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
