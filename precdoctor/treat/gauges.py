"""What a trial measures besides evidence: the time of a step and the bytes that are held after one."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from precdoctor.observe.models import Models

#: steps of an optimizer after which bytes are counted: the first makes the state
_COUNTED = (2, 3)


class Clock:
    """Measures the time between the ends of successive steps, less what observing took."""

    def __init__(self) -> None:
        #: seconds of wall time that went into observing, so far
        self.observing = 0.0
        self._depth = 0
        self._optimizer: weakref.ref[torch.optim.Optimizer] | None = None
        self._last: tuple[float, float] | None = None
        self._durations: list[float] = []

    def around(self, original: Any) -> Any:
        """Wrap a function whose time counts as observing."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._depth += 1
            try:
                return original(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.observing += time.perf_counter() - start

        return wrapper

    def step_ended(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the time at the end of a step; the first optimizer met sets the pace."""
        if self._optimizer is None:
            self._optimizer = weakref.ref(optimizer)
        if self._optimizer() is not optimizer:
            return
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        now = time.perf_counter(), self.observing
        if self._last is not None:
            self._durations.append(now[0] - self._last[0] - (now[1] - self._last[1]))
        self._last = now

    @property
    def step_seconds(self) -> float | None:
        """Return the median time of a step; None before the second one."""
        return statistics.median(self._durations) if self._durations else None


class Memory:
    """Counts the bytes of weights, gradients and optimizer state of the trained models, each storage once."""

    def __init__(self) -> None:
        #: the most that was held after a step, and the number of parameter elements
        self.held_bytes = 0
        self.elements = 0
        self._steps: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()

    def step_ended(self, optimizer: torch.optim.Optimizer, held_bytes: Any) -> None:
        """Count after one of the first steps; ``held_bytes()`` is what a treatment keeps."""
        self._steps[optimizer] = steps = self._steps.get(optimizer, 0) + 1
        if steps not in _COUNTED:
            return
        models = Models()
        models.refresh()
        stepped = [p for o in self._steps for group in o.param_groups for p in group["params"]]
        trained = {owner.root for p in stepped if (owner := models.owner(p)) is not None}
        owned = [p for p, owner in models.parameters() if owner.root in trained]
        parameters = list({id(p): p for p in (*owned, *stepped)}.values())
        gradients = [p.grad for p in parameters if p.grad is not None]
        storages = dict[Any, int]()
        _add(storages, [parameters, gradients, [dict(o.state) for o in self._steps]])
        self.elements = sum(p.numel() for p in owned or stepped)
        self.held_bytes = max(self.held_bytes, sum(storages.values()) + held_bytes())

    @property
    def bytes_per_parameter(self) -> float | None:
        """Return the bytes per parameter element; None where nothing was counted."""
        return self.held_bytes / self.elements if self.elements else None


def _add(storages: dict[Any, int], value: Any) -> None:
    """Note the size of every storage below a value, by its address."""
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):  # a subclass that wraps tensors, such as a quantized state
            names, _ = value.__tensor_flatten__()
            _add(storages, [getattr(value, name) for name in names])
        elif value.layout == torch.strided and not value.is_meta:
            storage = value.untyped_storage()
            storages[value.device, storage.data_ptr()] = storage.nbytes()
    elif isinstance(value, dict):
        _add(storages, value.values())
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        for item in value:
            _add(storages, item)
