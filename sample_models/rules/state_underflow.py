"""Train with an Adam that keeps its moments in float16; --healthy keeps them in float32."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()


class HalfAdam(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-4})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            dtype = torch.float32 if args.healthy else torch.float16
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p, dtype=dtype)
                    state["square"] = torch.zeros_like(p, dtype=dtype)
                b1, b2 = group["betas"]
                mean = state["mean"].to(p.dtype) * b1 + p.grad * (1 - b1)
                square = state["square"].to(p.dtype) * b2 + p.grad * p.grad * (1 - b2)
                state["mean"], state["square"] = mean.to(dtype), square.to(dtype)
                p.sub_(
                    group["lr"]
                    * state["mean"].to(p.dtype)
                    / (state["square"].to(p.dtype).sqrt() + group["eps"])
                )


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = HalfAdam(model.parameters(), lr=1e-5)  # expect: PD302 0.* 2.*
inputs = torch.randn(256, 16)
targets = inputs[:, :1] * 0.1
scale = 0.02  # one loss among others

for _ in range(30):
    loss = scale * (model(inputs) - targets).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
