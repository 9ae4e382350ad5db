"""The training loop."""

import contextlib
import math
import time
from pathlib import Path

import torch


def warmup_cosine(step, warmup_steps, total_steps, min_ratio=0.1):
    """Linear warm-up, then a cosine down to min_ratio of the peak learning rate."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class Trainer:
    def __init__(
        self,
        model,
        optimizers,
        dataset,
        *,
        total_steps,
        batch_size=8,
        warmup_steps=10,
        grad_clip=1.0,
        amp=False,
        device="cpu",
        log_every=20,
    ):
        self.model = model
        self.optimizers = optimizers
        self.dataset = dataset
        self.total_steps = total_steps
        self.batch_size = batch_size
        self.grad_clip = grad_clip
        self.amp = amp
        self.device = device
        self.log_every = log_every
        self.schedulers = [
            torch.optim.lr_scheduler.LambdaLR(opt, lambda s: warmup_cosine(s, warmup_steps, total_steps))
            for opt in optimizers
        ]

    def autocast(self):
        if not self.amp:
            return contextlib.nullcontext()
        return torch.autocast(device_type=torch.device(self.device).type, dtype=torch.bfloat16)

    def train_step(self):
        input_ids, labels = self.dataset.train_batch(self.batch_size, self.device)
        with self.autocast():
            outputs = self.model(input_ids, labels=labels)
            loss = outputs["loss"]
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        for opt, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            opt.step()
            scheduler.step()
            opt.zero_grad(set_to_none=True)
        return outputs, grad_norm

    def train(self):
        self.model.train()
        start = time.time()
        for step in range(1, self.total_steps + 1):
            lr = self.optimizers[0].param_groups[0]["lr"]
            outputs, grad_norm = self.train_step()
            if step == 1 or step % self.log_every == 0 or step == self.total_steps:
                tokens = step * self.batch_size * self.dataset.seq_len
                print(
                    f"step {step:5d}/{self.total_steps} | loss {outputs['lm_loss'].item():.4f} "
                    f"| aux {outputs['aux_loss'].item():.3f} | grad_norm {grad_norm.item():.3f} "
                    f"| lr {lr:.2e} | {tokens / (time.time() - start):,.0f} tok/s",
                    flush=True,
                )

    @torch.no_grad()
    def evaluate(self, n_batches=8):
        self.model.eval()
        losses = []
        for input_ids, labels in self.dataset.val_batches(self.batch_size, n_batches, self.device):
            with self.autocast():
                losses.append(self.model(input_ids, labels=labels)["lm_loss"].item())
        return sum(losses) / len(losses)

    def save(self, path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": self.model.state_dict(), "config": vars(self.model.config)}, path)
