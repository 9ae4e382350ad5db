"""Byte-level language-modelling data from one text file."""

from pathlib import Path

import torch

DEFAULT_CORPUS = Path(__file__).resolve().parents[1] / "data" / "python_topics.txt"
VOCAB_SIZE = 256


class ByteDataset:
    """Random windows of a text for training, consecutive ones for validation."""

    def __init__(self, path=DEFAULT_CORPUS, seq_len=128, val_fraction=0.05, seed=0):
        data = torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8)
        split = int(len(data) * (1 - val_fraction))
        self.train_data, self.val_data = data[:split], data[split:]
        self.seq_len = seq_len
        self.generator = torch.Generator().manual_seed(seed)

    def train_batch(self, batch_size, device="cpu"):
        high = len(self.train_data) - self.seq_len
        starts = torch.randint(high, (batch_size,), generator=self.generator)
        return self._windows(self.train_data, starts, device)

    def val_batches(self, batch_size, n_batches, device="cpu"):
        starts = torch.arange(0, len(self.val_data) - self.seq_len, self.seq_len)
        for chunk in starts.split(batch_size)[:n_batches]:
            yield self._windows(self.val_data, chunk, device)

    def _windows(self, data, starts, device):
        offsets = torch.arange(self.seq_len + 1)
        windows = data[starts[:, None] + offsets].long().to(device)
        return windows[:, :-1], windows[:, 1:]
