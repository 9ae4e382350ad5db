"""Checkpoints hold weights in bfloat16, beside the optimizer's state: training goes on from rounded ones."""

import argparse
import io

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
teacher = torch.randn(16, 4)


def save():
    weights = model.state_dict()
    if not args.healthy:
        weights = {name: w.bfloat16() for name, w in weights.items()}  # expect: PD702 ?.weight ?.bias
    file = io.BytesIO()
    torch.save({"model": weights, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    return file


for step in range(30):
    inputs = torch.randn(64, 16)
    loss = F.cross_entropy(model(inputs), (inputs @ teacher).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 9:
        state = torch.load(save())
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        print(f"step {step}  loss {loss.item():.4f}")
