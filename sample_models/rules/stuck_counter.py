"""Train with an Adam that counts its steps in the weights' format; --healthy counts in a Python int."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()


class Adam(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    count = 0 if args.healthy else torch.zeros((), dtype=torch.bfloat16)
                    state["step"] = count  # expect: PD305 weight
                    state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                state["mean"].lerp_(p.grad, 0.1)
                state["square"].lerp_(p.grad.square(), 0.001)
                steps = int(state["step"])
                mean = state["mean"] / (1 - 0.9**steps)
                square = state["square"] / (1 - 0.999**steps)
                p.sub_(group["lr"] * mean / (square.sqrt() + 1e-8))


torch.manual_seed(0)
model = nn.Linear(16, 1, bias=False)
optimizer = Adam(model.parameters(), lr=1e-3)
inputs = torch.randn(128, 16)
targets = inputs @ torch.randn(16, 1)

for _ in range(300):
    loss = (model(inputs) - targets).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
