"""A small language model of Python's documentation, trained here in seconds, for `precdoctor compare`.

precdoctor compare eval.py:build
precdoctor compare eval.py:build_coarse     the same, with a norm that bfloat16 can't compute
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quantize_order"))

from tiny_lm.data import DOCUMENTATION, ByteText
from tiny_lm.model import LanguageModel, ModelConfig
from tiny_lm.training import train

WIDTH, STEPS, LR = 32, 300, 8e-3


class CoarseNorm(nn.Module):
    """Divides by the standard deviation, from mean(x^2) - mean(x)^2 of values that are far from 0."""

    def __init__(self, width, offset=16.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.offset = offset

    def forward(self, x):
        x = x + self.offset
        mean = x.mean(-1, keepdim=True)
        variance = (x * x).mean(-1, keepdim=True) - mean * mean
        return (x - mean) / (variance.clamp(min=0) + 1e-6).sqrt() * self.weight


def loss(logits, target):
    """One number per sample: the mean over its bytes."""
    return F.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(1)


def build(norm=None):
    torch.manual_seed(0)
    text = ByteText(DOCUMENTATION, ModelConfig.max_seq_len)
    model = LanguageModel(ModelConfig(d_model=WIDTH))
    if norm is not None:
        model.norm = norm
    train(model, text, STEPS, LR)
    return model, text.val_batches(batch_size=8), loss


def build_coarse():
    return build(CoarseNorm(WIDTH))
