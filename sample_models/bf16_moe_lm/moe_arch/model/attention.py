"""Causal self-attention with rotary embeddings and QK-norm."""

from moe_arch.model.embeddings import RMSNorm, RotaryEmbedding
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, dim, n_heads, max_seq_len):
        super().__init__()
        self.n_heads = n_heads
        self.head_dim = dim // n_heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, dim, bias=False)
        self.wv = nn.Linear(dim, dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.q_norm = RMSNorm(self.head_dim)
        self.k_norm = RMSNorm(self.head_dim)
        self.rope = RotaryEmbedding(self.head_dim, max_seq_len)

    def forward(self, x):
        batch, seq, dim = x.shape
        shape = (batch, seq, self.n_heads, self.head_dim)
        q = self.q_norm(self.wq(x).view(shape)).transpose(1, 2)
        k = self.k_norm(self.wk(x).view(shape)).transpose(1, 2)
        v = self.wv(x).view(shape).transpose(1, 2)
        q, k = self.rope(q).type_as(v), self.rope(k).type_as(v)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(out.transpose(1, 2).reshape(batch, seq, dim))
