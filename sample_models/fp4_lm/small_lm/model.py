"""A decoder-only transformer: rotary positions, RMSNorm before each block, SiLU feed-forward."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from small_lm.layers import Float32Linear


@dataclass
class ModelConfig:
    vocab_size: int = 1024
    d_model: int = 64
    n_layers: int = 3
    n_heads: int = 4
    d_ff: int = 256
    max_seq_len: int = 32
    dropout: float = 0.1

    @property
    def init_std(self):
        return 0.02 * math.sqrt(384 / self.d_model)


SIZES = {
    "cpu": ModelConfig(),
    "full": ModelConfig(vocab_size=49152, d_model=384, n_layers=6, n_heads=8, d_ff=1536, max_seq_len=512),
}


class Rotary(nn.Module):
    def __init__(self, dim, max_seq_len):
        super().__init__()
        frequency = (1 / 10000) ** torch.linspace(0, 1, dim // 4)
        frequency = torch.cat([frequency, torch.zeros(dim // 4)])
        theta = torch.outer(torch.arange(max_seq_len).float(), frequency)
        self.register_buffer("cos", theta.cos(), persistent=False)
        self.register_buffer("sin", theta.sin(), persistent=False)

    def forward(self, x):
        cos, sin = self.cos[: x.size(-2)], self.sin[: x.size(-2)]
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1).type_as(x)


class Attention(nn.Module):
    def __init__(self, config, linear):
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.qkv = linear(config.d_model, 3 * config.d_model, config.init_std)
        self.out = linear(config.d_model, config.d_model, config.init_std)
        self.rotary = Rotary(config.d_model // config.n_heads, config.max_seq_len)

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.n_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        q, k = self.rotary(q), self.rotary(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, config, linear):
        super().__init__()
        self.up = linear(config.d_model, config.d_ff, config.init_std)
        self.down = linear(config.d_ff, config.d_model, config.init_std)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.down(self.dropout(F.silu(self.up(x))))


class Block(nn.Module):
    def __init__(self, config, attention, ffn):
        super().__init__()
        self.attention = Attention(config, attention)
        self.ffn = FeedForward(config, ffn)
        self.norm1 = nn.RMSNorm(config.d_model)
        self.norm2 = nn.RMSNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.ffn(self.norm2(x)))


class LanguageModel(nn.Module):
    """`linear` makes the layers of the quantized parts; the others are float32."""

    def __init__(self, config, linear=Float32Linear, quantized=("attention", "ffn", "head"), tied=False):
        super().__init__()
        attention, ffn, head = (
            linear if part in quantized else Float32Linear for part in ("attention", "ffn", "head")
        )
        self.scale = math.sqrt(config.d_model)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.init_std)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, attention, ffn) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model)
        self.head = head(config.d_model, config.vocab_size, config.init_std)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.dropout(self.embedding(tokens) * self.scale)
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(self.norm(x)))
