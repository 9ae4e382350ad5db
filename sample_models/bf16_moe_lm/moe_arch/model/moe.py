"""Mixture of experts: top-k router, SwiGLU experts, load-balancing loss."""

import torch
from torch import nn
from torch.nn import functional as F


class Expert(nn.Module):
    """SwiGLU feed-forward network."""

    def __init__(self, dim, hidden_dim):
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class MoELayer(nn.Module):
    def __init__(self, dim, hidden_dim, n_experts, top_k):
        super().__init__()
        self.n_experts = n_experts
        self.top_k = top_k
        self.router = nn.Linear(dim, n_experts, bias=False)
        self.experts = nn.ModuleList(Expert(dim, hidden_dim) for _ in range(n_experts))

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        # routing in fp32, like Switch Transformer
        probs = F.softmax(self.router(tokens).float(), dim=-1)
        top_probs, top_experts = probs.topk(self.top_k, dim=-1)
        top_probs = top_probs / top_probs.sum(dim=-1, keepdim=True)

        out = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            token_idx, slot = (top_experts == i).nonzero(as_tuple=True)
            weight = top_probs[token_idx, slot].unsqueeze(-1)
            expert_out = expert(tokens[token_idx]) * weight
            out.index_add_(0, token_idx, expert_out.type_as(out))
        return out.view_as(x), self.load_balancing_loss(probs, top_experts)

    def load_balancing_loss(self, probs, top_experts):
        """Switch Transformer eq. 4: n_experts * sum(share of tokens * mean router probability)."""
        share = F.one_hot(top_experts, self.n_experts).float().mean(dim=(0, 1))
        return self.n_experts * (share * probs.mean(dim=0)).sum()
