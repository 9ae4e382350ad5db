"""Small models for comparisons, healthy and not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batches = list[tuple[Tensor, Tensor]]


def classifier(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(16, 32),
        nn.GELU(),
        nn.LayerNorm(32),
        nn.Linear(32, 32),
        nn.ReLU(inplace=True),
        nn.Linear(32, 5),
    )


def data(samples: int = 48, batch: int = 16, width: int = 16, classes: int = 5) -> Batches:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, width, generator=generator)
    y = torch.randint(0, classes, (samples,), generator=generator)
    return list(zip(x.split(batch), y.split(batch), strict=True))


class CoarseNorm(nn.Module):
    """A variance from the difference of two large numbers."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + 64
        mean = x.mean(-1, keepdim=True)
        variance = (x * x).mean(-1, keepdim=True) - mean * mean
        return (x - mean) / (variance.clamp(min=0) + 1e-3).sqrt()


class Large(nn.Module):
    """Passes through values beyond the largest of float16, 65504."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1e6 / 1e6


class Attention(nn.Module):
    """A causal transformer block over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 32)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(3))
        self.head = nn.Linear(32, 40)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        mask = torch.full((tokens.shape[1],) * 2, -torch.inf, dtype=x.dtype).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=mask)
        return self.head(x)


class Gated(nn.Module):
    """A residual block with a gate: sums and products between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(32), nn.Linear(32, 64)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def residual() -> nn.Module:
    """A deep stream in which one channel is far larger than the others, as in language models."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), *(Gated() for _ in range(12)), nn.Linear(32, 5))
    with torch.no_grad():
        model[0].bias[3] = 300.0
    return model


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(1)
