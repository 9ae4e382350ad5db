"""Bytes of two texts: Python's documentation, which the models learn first, and Python's own modules."""

from pathlib import Path

import torch

SAMPLES = Path(__file__).resolve().parents[2]
# where they are from and their licence: NOTICE.txt beside each
DOCUMENTATION = SAMPLES / "bf16_moe_lm" / "data" / "python_topics.txt"
MODULES = SAMPLES / "quantize_order" / "data" / "python_modules.txt"


class ByteText:
    """Random windows of a text for training; its last part, in consecutive windows, for validation."""

    def __init__(self, path, seq_len, val_fraction=0.08):
        data = torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8).long()
        split = int(len(data) * (1 - val_fraction))
        self.train_data, self.val_data = data[:split], data[split:]
        self.seq_len = seq_len

    def train_batches(self, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(self.train_data) - self.seq_len, (batch_size,), generator=generator)
            yield self._windows(self.train_data, starts)

    def val_batches(self, batch_size=128, limit=None):
        starts = torch.arange(0, len(self.val_data) - self.seq_len, self.seq_len)[:limit]
        for chunk in starts.split(batch_size):
            yield self._windows(self.val_data, chunk)

    def _windows(self, data, starts):
        windows = data[starts[:, None] + torch.arange(self.seq_len + 1)]
        return windows[:, :-1], windows[:, 1:]
