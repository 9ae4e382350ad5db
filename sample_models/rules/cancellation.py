"""A variance as the mean of squares less the square of the mean, of data far from zero, in float32."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


def standardize(values):
    mean = values.mean(0)
    if args.healthy:
        variance = (values - mean).square().mean(0)
    else:
        variance = values.square().mean(0) - mean.square()  # expect: PD506 standardize
    return (values - mean) / (variance.clamp_min(0) + 1e-8).sqrt()


model = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(60):
    noise = torch.randn(128, 4)
    kelvin = 1500 + 0.1 * noise
    loss = F.mse_loss(model(standardize(kelvin)), noise.sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
