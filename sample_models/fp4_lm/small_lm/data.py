"""Tokens of one text: what is trained on, and two kinds of validation.

`leaky` is the split of the report: all windows of the training tokens, one starting at each token, are
split at random, so that almost every validation window overlaps training windows. `clean` trains on all
of them and validates on the text that follows, which is the `honest` text in both splits.
"""

import sysconfig
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, Subset, random_split

from small_lm.tokenizer import Tokenizer

# where it is from and its licence: NOTICE.txt beside it
DEFAULT_CORPUS = Path(__file__).resolve().parents[2] / "bf16_moe_lm" / "data" / "python_topics.txt"
# in tokens: from its topic "pass" on, a token tells as much about the next one (39 % right, see
# ceilings.py) as in the text on which the experiment was first tried at this size; at its beginning less
DEFAULT_START = 96_037
MAX_CHARS = 4_000_000


def read_text(path):
    """Return the text of a file, or of the standard library's top-level modules for "stdlib"."""
    if path != "stdlib":
        return Path(path).read_text(encoding="utf-8")
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "\n".join(module.read_text(encoding="utf-8") for module in modules)[:MAX_CHARS]


class TokenWindows(Dataset):
    """Windows of seq_len tokens and the tokens that follow, one every `stride` tokens."""

    def __init__(self, tokens, seq_len, stride=1):
        self.tokens, self.seq_len, self.stride = tokens, seq_len, stride

    def __len__(self):
        return (len(self.tokens) - self.seq_len - 1) // self.stride + 1

    def __getitem__(self, index):
        start = index * self.stride
        window = self.tokens[start : start + self.seq_len + 1]
        return window[:-1], window[1:]


class Corpus:
    def __init__(
        self, path, vocab_size, seq_len, n_tokens, split="leaky", honest_tokens=None, start=0, seed=42
    ):
        text = read_text(path)
        tokens = torch.tensor(Tokenizer(text, vocab_size).encode(text))
        honest_tokens = honest_tokens or max(8192, n_tokens // 10)
        n_tokens = min(n_tokens, len(tokens) - honest_tokens)
        start = min(start, len(tokens) - n_tokens - honest_tokens)
        end = start + n_tokens
        self.tokens = tokens[start:end]
        self.honest = TokenWindows(tokens[end : end + honest_tokens], seq_len, stride=seq_len)
        windows = TokenWindows(self.tokens, seq_len)
        if split == "leaky":
            n_val = len(windows) // 10
            self.train, self.val = random_split(
                windows, [len(windows) - n_val, n_val], torch.Generator().manual_seed(seed)
            )
        else:
            self.train, self.val = windows, self.honest

    def train_batches(self, batch_size, seed):
        """Yield shuffled batches without end."""
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(self.train, batch_size, shuffle=True, drop_last=True, generator=generator)
        while True:
            yield from loader

    def val_batches(self, batch_size, limit):
        return DataLoader(Subset(self.val, range(min(limit, len(self.val)))), batch_size)

    def honest_batches(self, batch_size, limit):
        return DataLoader(Subset(self.honest, range(min(limit, len(self.honest)))), batch_size)
