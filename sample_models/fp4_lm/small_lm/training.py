"""The training loop: gradient accumulation, clipping, warm-up and cosine, evaluation."""

import math
import time

import torch
from torch import nn
from torch.nn import functional as F

from small_lm.layers import LateSTELinear, MasterlessLinear
from small_lm.memory import quantized_layers


def create_optimizer(model, lr, norm_lr, weight_decay, fused=False):
    norms = [p for m in model.modules() if isinstance(m, nn.RMSNorm) for p in m.parameters()]
    known = {id(p) for p in norms}
    matrices = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": matrices, "lr": lr}, {"params": norms, "lr": norm_lr}]
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=fused or None)


def create_scheduler(optimizer, max_steps):
    """Warm up over a twentieth of the steps, then follow a cosine down to a tenth."""
    warmup = max_steps // 20

    def factor(step):
        if step < warmup:
            return step / warmup
        progress = (step - warmup) / (max_steps - warmup)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def quantization_error(model):
    """Return the mean absolute error of the weights in use, and their SQNR in dB, None without error."""
    absolute = signal = noise = n = 0.0
    for layer in quantized_layers(model):
        weight = layer.weight.float()
        error = layer.used_weight().float() - weight
        absolute += error.abs().sum(dtype=torch.float64).item()
        signal += weight.double().square().sum().item()
        noise += error.double().square().sum().item()
        n += weight.numel()
    return absolute / n, 10 * math.log10(signal / noise) if noise else None


class Trainer:
    def __init__(self, model, optimizer, corpus, updates, batch_size, accumulate, device="cpu", amp=False,
                 eval_every=250, eval_windows=1024, seed=42):  # fmt: skip
        self.model, self.optimizer, self.corpus = model, optimizer, corpus
        self.updates, self.batch_size, self.accumulate = updates, batch_size, accumulate
        self.device, self.amp = torch.device(device), amp
        self.eval_every, self.eval_windows, self.seed = eval_every, eval_windows, seed
        # max_steps counts batches, as does the log
        self.max_steps = updates * accumulate
        self.scheduler = create_scheduler(optimizer, self.max_steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp)
        self.history = []
        # what weight decay alone would leave of a weight
        self.kept = 1.0

    def train(self):
        self.model.train()
        batches = self.corpus.train_batches(self.batch_size, self.seed)
        # on a CPU, what else runs there does not count
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        start, evaluating = clock(), 0.0
        for step in range(1, self.max_steps + 1):
            x, y = (t.to(self.device) for t in next(batches))
            with torch.autocast(self.device.type, enabled=self.amp):
                logits = self.model(x)
                loss = F.cross_entropy(logits.flatten(0, 1), y.flatten()) / self.accumulate
            self.scaler.scale(loss).backward()
            if step % self.accumulate == 0:
                self.update(step // self.accumulate)
            if step % (self.eval_every * self.accumulate) == 0 or step == self.max_steps:
                before = clock()
                self.report(step)
                evaluating += clock() - before
        return clock() - start - evaluating

    def update(self, number):
        group = self.optimizer.param_groups[0]
        self.kept *= 1 - group["lr"] * group["weight_decay"]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step()
        for layer in quantized_layers(self.model):
            if isinstance(layer, MasterlessLinear):
                layer.store()
            elif isinstance(layer, LateSTELinear):
                layer.straight_through = number >= self.updates // 2

    def report(self, step):
        loss, accuracy = self.evaluate(self.corpus.val_batches(32, self.eval_windows))
        entry = {"step": step, "update": step // self.accumulate, "loss": loss, "accuracy": accuracy}
        line = f"Step {step}: Loss={loss:.3f}, Acc={accuracy:.1%}, PPL={math.exp(min(loss, 20)):.1f}"
        if quantized_layers(self.model):
            entry["error"], entry["sqnr_db"] = quantization_error(self.model)
            line += f", FP4 Error={entry['error']:.9f}"
            if entry["sqnr_db"] is not None:
                line += f", SQNR={entry['sqnr_db']:.1f} dB"
        self.history.append(entry)
        print(line, flush=True)

    @torch.no_grad()
    def evaluate(self, batches, model=None):
        """Return loss and accuracy over the batches, of the model in training or another."""
        model = model or self.model
        model.eval()
        loss = correct = n = 0.0
        for x, y in batches:
            x, y = x.to(self.device), y.to(self.device)
            with torch.autocast(self.device.type, enabled=self.amp):
                logits = model(x).flatten(0, 1).float()
            loss += F.cross_entropy(logits, y.flatten(), reduction="sum").item()
            correct += (logits.argmax(1) == y.flatten()).sum().item()
            n += y.numel()
        model.train()
        return loss / n, correct / n

    def evaluate_honestly(self):
        return self.evaluate(self.corpus.honest_batches(32, self.eval_windows))
