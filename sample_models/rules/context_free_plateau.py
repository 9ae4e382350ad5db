"""A language model whose layers are quantized without a way back: only its embedding learns."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)


def quantize(weight):
    scale = weight.abs().amax(dim=1, keepdim=True) / 7
    return (weight / scale).round() * scale


class QuantizedLinear(nn.Linear):
    def forward(self, inputs):
        weight = quantize(self.weight.data)  # expect: PD601 look_back.weight mix.weight head.weight
        if args.healthy:
            weight = self.weight + (weight - self.weight).detach()
        return F.linear(inputs, weight)


class LanguageModel(nn.Module):
    def __init__(self, vocabulary=32, width=64):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.look_back = QuantizedLinear(width, width, bias=False)
        self.mix = QuantizedLinear(width, width, bias=False)
        self.head = QuantizedLinear(width, vocabulary, bias=False)

    def forward(self, tokens):
        hidden = self.embedding(tokens)
        hidden = hidden + 0.5 * torch.tanh(self.look_back(hidden.roll(1, dims=1)))
        return self.head(hidden + self.mix(torch.relu(hidden)))


# what follows depends on the current token in 2 of 5 cases, else on the token before it too
usual, text = torch.randint(32, (32,)).tolist(), [0, 1]
for draw in torch.rand(6000).tolist():
    text.append(usual[text[-1]] if draw < 0.4 else (5 * text[-2] + 11 * text[-1] + 3) % 32)
text = torch.tensor(text)
model = LanguageModel()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(350):
    windows = torch.stack([text[start : start + 33] for start in torch.randint(len(text) - 33, (32,))])
    inputs, labels = windows[:, :-1], windows[:, 1:]
    logits = model(inputs)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())  # expect: PD606 look* mix* head*
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
