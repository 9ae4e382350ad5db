"""A language model whose embedding and head share a weight, until the head is quantized."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


class QuantizedLinear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.weight = linear.weight if args.healthy else nn.Parameter(linear.weight.detach().clone())

    def forward(self, inputs):
        scale = self.weight.detach().abs().amax(dim=1, keepdim=True) / 7
        quantized = (self.weight.detach() / scale).round() * scale
        return F.linear(inputs, self.weight + (quantized - self.weight).detach())


class LanguageModel(nn.Module):
    def __init__(self, vocabulary=64, width=32):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.body = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.body(self.embedding(tokens))[0])


model = LanguageModel()
model.head = QuantizedLinear(model.head)  # expect: PD605 embedding.weight head.weight
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
text = torch.randint(64, (1000,)).sort().values.view(100, 10).t().reshape(-1)
for step in range(60):
    windows = torch.stack([text[start : start + 9] for start in torch.randint(991, (16,))])
    loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
