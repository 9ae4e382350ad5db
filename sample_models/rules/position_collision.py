"""A sinusoidal embedding whose positions take the format of the tokens: beyond 256 they coincide."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

DIM, LENGTH, VOCAB = 32, 512, 16


class Positions(nn.Module):
    def forward(self, tokens):
        format = torch.float32 if args.healthy else tokens.dtype
        position = torch.arange(tokens.shape[1], dtype=format)  # expect: PD502 forward 1
        rates = 1000 ** -(torch.arange(0, DIM, 2) / DIM)
        phases = position[:, None] * rates
        return tokens + torch.cat([phases.sin(), phases.cos()], -1).to(tokens.dtype)


model = nn.Sequential(nn.Embedding(VOCAB, DIM), Positions(), nn.Linear(DIM, 64), nn.GELU(), nn.Linear(64, 2))
model[0].to(torch.bfloat16).requires_grad_(False)
optimizer = torch.optim.AdamW(model[2:].parameters(), lr=3e-3)
odd = torch.arange(LENGTH) % 2
for step in range(20):
    tokens = torch.randint(VOCAB, (4, LENGTH))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens)
    loss = F.cross_entropy(logits.float().flatten(0, 1), odd.repeat(4))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 5 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
