"""Gumbel noise whose uniform numbers take the format of the logits."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


def gumbel(logits):
    format = torch.float32 if args.healthy else logits.dtype
    uniform = torch.rand(logits.shape, dtype=format)  # expect: PD509 gumbel
    return -(-uniform.clamp(min=1e-20).log()).log()


encoder, decoder = nn.Linear(16, 256), nn.Linear(256, 16)
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
centers = torch.randn(32, 16)
for step in range(20):
    inputs = centers[torch.randint(32, (64,))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = encoder(inputs)
        codes = ((logits + gumbel(logits)).float() / 0.7).softmax(-1)
        decoded = decoder(codes)
    loss = F.mse_loss(decoded.float(), inputs)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 5 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
