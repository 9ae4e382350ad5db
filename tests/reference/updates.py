"""Intended updates the slow and obvious way: a full float64 step of a freshly built optimizer."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch


def exact_updates(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return, for a plain torch optimizer about to step, the float64 update of every parameter."""
    groups, originals, copies = [], [], []
    for group in optimizer.param_groups:
        doubles = []
        for p in group["params"]:
            exact = torch.nn.Parameter(p.detach().double().clone())
            exact.grad = None if p.grad is None else p.grad.double().clone()
            doubles.append(exact)
            originals.append(p)
            copies.append(exact)
        settings = {k: v for k, v in group.items() if k not in ("params", "foreach", "fused")}
        groups.append({"params": doubles, **settings})
    twin = type(optimizer)(groups, lr=1.0)
    if optimizer.state:
        state = copy.deepcopy(optimizer.state_dict())  # load_state_dict would share the step counters
        for group in state["param_groups"]:
            group.update({k: None for k in ("foreach", "fused") if k in group})
        twin.load_state_dict(state)
    twin.step()
    return [c.detach() - p.detach().double() for p, c in zip(originals, copies, strict=True)]


def edq(history: list[tuple[list[float], list[float]]], window: int) -> float:
    """Return the EDQ of (applied, intended) pairs by its definition, over closed windows."""
    above = below = 0.0
    for start in range(0, len(history) - window + 1, window):
        part = history[start : start + window]
        for element in range(len(part[0][0])):
            applied = sum(a[element] for a, _ in part)
            intended = sum(u[element] for _, u in part)
            above += applied * intended
            below += intended * intended
    return above / below


def lost(history: list[tuple[list[float], list[float]]]) -> tuple[int, int]:
    """Return the number of lost and of intended updates."""
    pairs = [(a, u) for applied, intended in history for a, u in zip(applied, intended, strict=True)]
    return sum(1 for a, u in pairs if u and not a), sum(1 for _, u in pairs if u)


def kept(history: list[tuple[list[float], list[float], list[float]]]) -> tuple[float, float]:
    """Return the share written over and the EDQ left of (before, after, intended) of successive steps."""
    above = below = 0.0
    written = total = 0
    for (before, after, intended), (following, _, _) in pairwise(history):
        for b, a, u, n in zip(before, after, intended, following, strict=True):
            above += (n - b) * u
            below += u * u
            written += bool(u) and n != a
            total += 1
    return written / total, above / below
