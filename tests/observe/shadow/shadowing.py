"""Runs a few lines under the operation probe with the shadow alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from precdoctor.evidence import Exactness, Place
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.probe.probe import OperationProbe
from precdoctor.observe.shadow.watch import ShadowWatch


def is_trained(tensor: Tensor) -> bool:
    return tensor.is_leaf and tensor.requires_grad


def place(spot: Spot | None) -> Place | None:
    return None if spot is None else Place(file=spot.file, line=spot.line, function=spot.function)


@contextmanager
def shadowed(
    is_made: Callable[[Tensor], bool] = is_trained, *, thorough: bool = False
) -> Iterator[ShadowWatch]:
    """Follow what runs inside."""
    watch = ShadowWatch(UserCode(), is_made, thorough=thorough)
    probe = OperationProbe([watch])
    probe.attach()
    try:
        yield watch
    finally:
        probe.detach()
        assert not probe.limits, probe.limits


def seen(act: Callable[[], Tensor | None], passes: int = 3) -> Exactness:
    """Run a forward pass a few times, each ended by a look at its loss, and return what was seen."""
    with shadowed() as watch:
        for number in range(passes):
            loss = act()
            if loss is not None:
                watch.losses([loss], number, None)
    return watch.evidence(place)


def layer(size_in: int, size_out: int) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(size_in, size_out, bias=False)
