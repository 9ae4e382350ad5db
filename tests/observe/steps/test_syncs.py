"""An observed step reads nothing back from the device: every number is taken at the end."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from precdoctor.doctor import Doctor

#: operations that wait for an accelerator
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item", "unique", "masked_select")


class Waits(TorchDispatchMode):
    """Counts operations that would wait if the tensors lived on an accelerator."""

    def __init__(self, *, host_scalars: bool) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        #: counters such as AdamW's state["step"] live on the host whatever the parameters' device
        self._host_scalars = host_scalars

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        on_device = any(isinstance(a, torch.Tensor) and (a.ndim or not self._host_scalars) for a in args)
        if name in WAITING and on_device:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_observed_step_waits_for_nothing(kind: type[torch.optim.Optimizer], dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 2)).to(dtype)
    optimizer = kind(model.parameters(), lr=1e-3, weight_decay=0.1)  # type: ignore[call-arg]
    with Doctor(model, optimizer, every=1) as doctor:
        for step in range(8):
            model(torch.randn(4, 40, dtype=dtype)).float().square().mean().backward()
            with Waits(host_scalars=kind is torch.optim.AdamW) as waits:
                optimizer.step()
            # the first steps look at models and masters as well
            if step not in (0, 1, 2, 3, 5):
                assert not waits.found
    assert doctor.evidence().run.observed == 8
