"""Three training steps to be slowed down: two language models, and one that is nearly all optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 4096


class Block(nn.Module):
    """A transformer block, norms first."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to the same."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class Gpt(nn.Module):
    """A GPT with an output layer of its own: 12 tensors per block and 5 more."""

    def __init__(self, layers: int, width: int, time: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, width), nn.Embedding(time, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (batch, time) to logits (batch, time, vocabulary)."""
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


class ManyTensors(nn.Module):
    """200 small linear layers: 403 tensors, and little to do for each but the optimizer step."""

    def __init__(self, layers: int = 200, width: int = 320) -> None:
        super().__init__()
        self.token = nn.Embedding(512, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (batch, time) to logits (batch, time, 512)."""
        x: Tensor = self.token(tokens)
        for layer in self.layers:
            x = x + F.relu(layer(x)) / len(self.layers)
        return F.linear(self.norm(x), self.token.weight)


#: name: model, and the shape and largest id of a batch
WORKLOADS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], int]] = {
    "toy": (lambda: Gpt(layers=1, width=64, time=16), (2, 16), VOCABULARY),
    "small": (lambda: Gpt(layers=4, width=256, time=128), (8, 128), VOCABULARY),
    "mid": (lambda: Gpt(layers=8, width=512, time=128), (4, 128), VOCABULARY),
    "optb": (ManyTensors, (2, 1), 512),
}
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Workload:
    """A model, its AdamW and the batch that it sees at every step."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        build, shape, largest = WORKLOADS[name]
        torch.manual_seed(0)
        self.model = build().to(dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)
        self.tokens, self.targets = torch.randint(0, largest, (2, *shape))

    @property
    def parameter_bytes(self) -> int:
        """Return the bytes that the parameters take."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def backward(self) -> None:
        """Do everything of a training step but the optimizer's part."""
        self.optimizer.zero_grad()
        logits = self.model(self.tokens)
        F.cross_entropy(logits.flatten(0, 1).float(), self.targets.flatten()).backward()
