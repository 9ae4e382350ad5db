"""What can be predicted without looking further back than the current token."""

from collections import Counter, defaultdict
from itertools import pairwise

import torch


def majority_share(tokens):
    """Return the accuracy of always predicting the commonest token."""
    return max(Counter(tokens.tolist()).values()) / len(tokens)


def bigram_ceiling(tokens):
    """Return the accuracy of predicting for each token its commonest successor in the same text."""
    followers = defaultdict(Counter)
    for token, following in pairwise(tokens.tolist()):
        followers[token][following] += 1
    return sum(max(counts.values()) for counts in followers.values()) / (len(tokens) - 1)


@torch.no_grad()
def context_free_share(model, batches, device):
    """Return the share of predictions that are the commonest ones for their current token."""
    model.eval()
    predicted = defaultdict(Counter)
    for x, _ in batches:
        choices = model(x.to(device)).argmax(-1)
        for token, choice in zip(x.flatten().tolist(), choices.flatten().tolist(), strict=True):
            predicted[token][choice] += 1
    model.train()
    total = sum(sum(counts.values()) for counts in predicted.values())
    return sum(max(counts.values()) for counts in predicted.values()) / total
