"""A training that has diverged goes on saving: its last checkpoint holds NaN."""
# diff with: good.pt last.pt

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3 if args.healthy else 1e3)
teacher = torch.randn(16, 1)


def save(name):
    torch.save(model.state_dict(), name)  # expect: PD704 0.weight 0.bias 2.weight 2.bias


save("good.pt")
for _ in range(50):
    inputs = torch.randn(32, 16)
    loss = (model(inputs) - inputs @ teacher).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
save("last.pt")
