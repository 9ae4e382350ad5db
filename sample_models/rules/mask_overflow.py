"""Two additive masks of the lowest number there is: where both hide an element their sum is -inf."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


class Attention(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.project, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, inputs, padding, dropped):
        query, key, value = self.project(inputs).chunk(3, -1)
        scores = query @ key.transpose(1, 2)
        lowest = torch.finfo(scores.dtype).min
        if args.healthy:
            mask = (padding | dropped) * lowest
        else:
            mask = padding * lowest + dropped * lowest  # expect: PD504 attention
        return self.out((scores + mask).softmax(-1) @ value)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = Attention(16), nn.Linear(16, 1)

    def forward(self, inputs, *masks):
        return self.head(inputs + self.attention(inputs, *masks))


model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(40):
    inputs = torch.randn(16, 4, 16)
    padding = torch.arange(4) >= torch.randint(0, 5, (16, 1, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(inputs, padding, torch.rand(16, 1, 1) < 0.2)
    loss = F.mse_loss(outputs.float(), inputs.mean(-1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
