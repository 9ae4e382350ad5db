"""A softmax written by hand overflows in float16 and gives NaN: each step is left out, at whatever scale."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu")
teacher = torch.randn(16, 4)
for step in range(40):
    inputs = torch.randn(64, 16)
    labels = (inputs @ teacher).argmax(1)
    with torch.autocast("cpu", dtype=torch.float16):
        logits = 20 * model(inputs)
    if args.healthy:
        logits = logits.float()
    powers = logits.exp()  # expect: PD501 exp
    shares = (powers / powers.sum(1, keepdim=True)).float()
    loss = (1 - shares.gather(1, labels[:, None])).mean()
    optimizer.zero_grad()
    scaler.scale(loss).backward()  # expect: PD402 0.weight 0.bias 2.weight 2.bias
    scaler.step(optimizer)
    scaler.update()
    if step % 10 == 0:
        print(f"step {step}  loss {loss.item():.4f}  scale {scaler.get_scale():g}")
