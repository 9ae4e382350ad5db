"""Optimizers that keep what bfloat16 rounds away, written the obvious way."""

from __future__ import annotations

from typing import Any

import torch


class _Descent(torch.optim.Optimizer):
    """Momentum SGD; subclasses say how ``p + update`` is stored."""

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(group["momentum"]).add_(p.grad)
                self.store(p, -group["lr"] * state["momentum"] - group["lr"] * group["weight_decay"] * p)

    def store(self, p: torch.Tensor, update: torch.Tensor) -> None:
        raise NotImplementedError


class Plain(_Descent):
    def store(self, p: torch.Tensor, update: torch.Tensor) -> None:
        p.add_(update)


class Kahan(_Descent):
    """Compensated summation (Kahan 1965): the remainder is kept in a buffer of the weight's format."""

    def store(self, p: torch.Tensor, update: torch.Tensor) -> None:
        state = self.state[p]
        if "remainder" not in state:
            state["remainder"] = torch.zeros_like(p)
        update = update + state["remainder"]
        old = p.clone()
        p.add_(update)
        state["remainder"].copy_(update - (p - old))


class OwnMaster(_Descent):
    """Keeps a float32 master in its state."""

    def store(self, p: torch.Tensor, update: torch.Tensor) -> None:
        state = self.state[p]
        if "master" not in state:
            state["master"] = p.float() if p.dtype != torch.float64 else p.clone()
        state["master"].add_(update)
        p.copy_(state["master"])


class StochasticRounding(_Descent):
    """Rounds up or down with the probability of the remainder (bfloat16), exact elsewhere."""

    def store(self, p: torch.Tensor, update: torch.Tensor) -> None:
        if p.dtype != torch.bfloat16:
            p.add_(update)
            return
        bits = (p.float() + update.float()).view(torch.int32)
        noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32)
        p.copy_(((bits + noise) & -65536).view(torch.float32))


class WritesNothing(_Descent):
    """A library bug: the result is computed and dropped."""

    def store(self, p: torch.Tensor, update: torch.Tensor) -> None:
        p + update
