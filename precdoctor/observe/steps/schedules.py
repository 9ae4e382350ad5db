"""What the learning-rate schedulers attached to an optimizer will do, found by stepping copies of them."""

from __future__ import annotations

import copy
import gc
import time
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from precdoctor.observe.steps.twin import muted, undisturbed_rng
from precdoctor.observe.steps.wrapping import inner

#: how far ahead a schedule is followed, steps and seconds
_HORIZON, _SECONDS = 20_000, 0.25


class _Stub:
    """Stands in for the optimizer: schedulers read and write its groups and nothing else."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.param_groups = [
            {key: _number(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        self.defaults = dict(optimizer.defaults)
        self.state: dict[Any, Any] = {}
        self._opt_called = True

    def step(self) -> None:
        """Do nothing; schedulers look whether it exists."""


def future(
    optimizer: torch.optim.Optimizer, steps: int, schedulers: Iterable[LRScheduler] | None = None
) -> dict[int, tuple[tuple[int, float], ...]]:
    """Return, by group, (optimizer steps from now, lr), geometrically spaced; empty without a scheduler.

    ``steps`` is how many the optimizer has made: a scheduler that moved less often (once per epoch) is
    taken to go on so. One that has not moved yet, or is driven by a metric, can't be foreseen.
    ``schedulers`` are those of the process, where they are known already.
    """
    known = live_schedulers() if schedulers is None else schedulers
    # one that was attached to a wrapper writes to the groups of the optimizer inside
    mine = [
        s
        for s in known
        if isinstance(o := getattr(s, "optimizer", None), Optimizer) and inner(o) is optimizer
    ]
    children = {id(child) for s in mine for child in getattr(s, "_schedulers", ())}
    outer = [s for s in mine if id(s) not in children and not isinstance(s, ReduceLROnPlateau)]
    moved = max((s.last_epoch for s in outer), default=0)
    if not outer or (moved == 0 and steps > 1):
        return {}
    pace = max(steps / max(moved, 1), 1.0)
    stub = _Stub(optimizer)
    found: dict[int, list[tuple[int, float]]] = {i: [] for i in range(len(stub.param_groups))}
    with undisturbed_rng(), muted(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            copies = [copy.deepcopy(s, {id(optimizer): stub, id(s.optimizer): stub}) for s in outer]
            deadline, wanted = time.perf_counter() + _SECONDS, 1
            for number in range(1, _HORIZON + 1):
                for scheduler in copies:
                    scheduler.step()
                if number >= wanted:
                    for index, group in enumerate(stub.param_groups):
                        found[index].append((round(number * pace), float(group["lr"])))
                    wanted = max(wanted + 1, int(wanted * 1.03))
                    if time.perf_counter() > deadline:
                        break
        except Exception:
            # the schedule ends (OneCycleLR raises past its last step) or can't be copied: keep what was found
            pass
    return {index: tuple(points) for index, points in found.items() if points}


def live_schedulers() -> list[LRScheduler]:
    """Return the schedulers of the process (a walk over the garbage collector's objects)."""
    return [o for o in gc.get_objects() if issubclass(type(o), LRScheduler)]


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, torch.Tensor) else copy.copy(value)
