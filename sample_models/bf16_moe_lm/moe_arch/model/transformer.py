"""The decoder-only transformer."""

from dataclasses import dataclass

from moe_arch.model.attention import Attention
from moe_arch.model.embeddings import RMSNorm, TokenEmbedding
from moe_arch.model.moe import MoELayer
from torch import nn
from torch.nn import functional as F


@dataclass
class ModelConfig:
    vocab_size: int = 256
    dim: int = 96
    n_layers: int = 3
    n_heads: int = 4
    n_experts: int = 4
    top_k: int = 2
    expert_dim: int = 192
    max_seq_len: int = 128
    aux_loss_weight: float = 0.01


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn_norm = RMSNorm(config.dim)
        self.attn = Attention(config.dim, config.n_heads, config.max_seq_len)
        self.moe_norm = RMSNorm(config.dim)
        self.moe = MoELayer(config.dim, config.expert_dim, config.n_experts, config.top_k)

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        moe_out, aux_loss = self.moe(self.moe_norm(x))
        return x + moe_out, aux_loss


class MoETransformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, input_ids, labels=None):
        x = self.embed(input_ids)
        aux_loss = 0.0
        for layer in self.layers:
            x, layer_aux = layer(x)
            aux_loss = aux_loss + layer_aux
        logits = self.lm_head(self.norm(x))

        outputs = {"logits": logits}
        if labels is not None:
            lm_loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
            aux_loss = aux_loss / len(self.layers)
            outputs["lm_loss"] = lm_loss
            outputs["aux_loss"] = aux_loss
            outputs["loss"] = lm_loss + self.config.aux_loss_weight * aux_loss
        return outputs
