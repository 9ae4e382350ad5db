"""Three small bfloat16 trainings that really learn, with warm-up and a cosine: to foresee and to see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads import Block

#: draws a batch and returns the model's loss on it
Loss = Callable[[nn.Module], Tensor]


class Letters(nn.Module):
    """A GPT over 128 characters: 2 blocks, width 64, 48 characters of context."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(128, 64), nn.Embedding(48, 64)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.Sequential(Block(64, heads=4), Block(64, heads=4))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 128, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map characters (batch, time) to logits (batch, time, 128)."""
        logits: Tensor = self.head(self.norm(self.blocks(self.token(tokens) + self.position.weight)))
        return logits


def network(*widths: int, scales: tuple[float, ...]) -> nn.Sequential:
    """Return linear layers with GELU between; ``scales`` multiply their initial matrices."""
    layers: list[nn.Module] = []
    for scale, before, after in zip(scales, widths, widths[1:], strict=False):
        linear = nn.Linear(before, after)
        with torch.no_grad():
            linear.weight.mul_(scale)
        layers += [linear, nn.GELU()]
    return nn.Sequential(*layers[:-1])


def language() -> tuple[nn.Module, Loss]:
    """Predict the next character of the prose in Python's own help."""
    prose = "".join(topics.values()).encode("ascii", "replace")
    text = torch.frombuffer(bytearray(prose), dtype=torch.uint8).long()

    def loss(model: nn.Module) -> Tensor:
        starts = torch.randint(0, len(text) - 49, (12, 1))
        pieces = text[starts + torch.arange(49)]
        return F.cross_entropy(model(pieces[:, :-1]).float().flatten(0, 1), pieces[:, 1:].flatten())

    return Letters(), loss


def regression() -> tuple[nn.Module, Loss]:
    """Fit a larger network's noisy outputs, with matrices that start at several scales."""
    teacher = network(32, 256, 4, scales=(4.0, 1.0))

    @torch.no_grad()
    def batch() -> tuple[Tensor, Tensor]:
        inputs = torch.randn(128, 32)
        return inputs, 8 * teacher(inputs) + 0.3 * torch.randn(128, 4)

    def loss(model: nn.Module) -> Tensor:
        inputs, targets = batch()
        return F.mse_loss(model(inputs.bfloat16()).float(), targets)

    return network(32, 96, 96, 96, 4, scales=(0.3, 1.0, 2.0, 0.1)), loss


def classification() -> tuple[nn.Module, Loss]:
    """Tell ten overlapping clouds of points apart: the labels are noisy, the gradients stay."""
    centres = torch.randn(40, 32) * 0.7

    def loss(model: nn.Module) -> Tensor:
        clouds = torch.randint(0, 40, (128,))
        inputs = centres[clouds] + torch.randn(128, 32)
        return F.cross_entropy(model(inputs.bfloat16()).float(), clouds % 10)

    return network(32, 96, 96, 10, scales=(1.0, 1.0, 0.3)), loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is trained, and how."""

    name: str
    build: Callable[[], tuple[nn.Module, Loss]]
    #: optimizer's class and settings; the learning rate is that of the peak
    optimizer: type[torch.optim.Optimizer]
    settings: dict[str, Any]
    #: steps in all and of the linear warm-up, and the cosine's last rate, relative to its peak
    steps: int
    warm_up: int
    floor: float

    def start(self, seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Loss]:
        """Return the model in bfloat16, its optimizer at the peak's rate and the loss of the next batch."""
        torch.manual_seed(seed)
        model, loss = self.build()
        model.bfloat16()
        return model, self.optimizer(model.parameters(), **self.settings), loss

    def rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0) relative to the peak."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        part = min((step - self.warm_up) / (self.steps - self.warm_up), 1.0)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * part))


TRAININGS = {
    training.name: training
    for training in (
        Training(
            name="language",
            build=language,
            optimizer=torch.optim.AdamW,
            settings={"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)},
            steps=1000,
            warm_up=40,
            floor=0.1,
        ),
        Training(
            name="regression",
            build=regression,
            optimizer=torch.optim.AdamW,
            settings={"lr": 2e-3, "weight_decay": 0.01, "betas": (0.9, 0.999)},
            steps=1500,
            warm_up=30,
            floor=0.0,
        ),
        Training(
            name="classification",
            build=classification,
            optimizer=torch.optim.SGD,
            settings={"lr": 0.1, "weight_decay": 1e-4, "momentum": 0.9},
            steps=1500,
            warm_up=30,
            floor=0.02,
        ),
    )
}
