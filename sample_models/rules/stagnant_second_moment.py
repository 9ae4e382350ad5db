"""A lean optimizer that keeps its average of squared gradients in bfloat16."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


class LeanAdam(torch.optim.Optimizer):
    def __init__(self, params, lr, dtype):
        super().__init__(params, {"lr": lr, "beta": 0.998})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, square=torch.zeros_like(p, dtype=self.dtype))
                state["step"] += 1
                grad = p.grad.to(self.dtype)
                state["square"].mul_(group["beta"]).addcmul_(grad, grad, value=1 - group["beta"])
                mean = state["square"].float() / (1 - group["beta"] ** state["step"])
                p.addcdiv_(p.grad, mean.sqrt() + 1e-8, value=-group["lr"])


model = nn.Linear(16, 4, bias=False)
dtype = torch.float32 if args.healthy else torch.bfloat16
optimizer = LeanAdam(model.parameters(), lr=1e-3, dtype=dtype)  # expect: PD301 weight
teacher = torch.randn(16, 4)
for step in range(1200):
    inputs = torch.randn(32, 16)
    loss = F.mse_loss(model(inputs), inputs @ teacher + torch.randn(32, 4))
    if step < 10:
        loss = 100 * loss  # emphasis on the first batches
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 300 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
