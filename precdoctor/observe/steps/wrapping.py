"""Optimizers around optimizers: which one steps, and who stores its results for it."""

from __future__ import annotations

from typing import Any

import torch


def inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer whose step is taken in the end: wrappers hold theirs as ``.optimizer``."""
    while isinstance(within := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = within
    return optimizer


def keeper(optimizer: torch.optim.Optimizer) -> Any | None:
    """Return the object whose step hooks store the optimizer's results, such as a Kahan summation; or None.

    Known by its ``again(optimizer)``: the same for another optimizer, with ``before()`` and ``after()`` to be
    called around a step.
    """
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    return next((owner for owner in owners if callable(getattr(owner, "again", None))), None)
