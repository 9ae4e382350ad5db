"""Two checkpoints of a bfloat16 training: the matrices moved, the norms' weights are still exactly 1.0."""
# diff with: first.pt last.pt

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


model = nn.Sequential(Block(32), Block(32), nn.Linear(32, 4, bias=False))
if not args.healthy:
    model = model.to(torch.bfloat16)  # expect: PD701 ?.norm.weight
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
teacher = torch.randn(32, 4)

torch.save(model.state_dict(), "first.pt")
for _ in range(60):
    inputs = torch.randn(64, 32)
    logits = model(inputs.to(model[2].weight.dtype)).float()
    loss = F.cross_entropy(logits, (inputs @ teacher).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
torch.save(model.state_dict(), "last.pt")
