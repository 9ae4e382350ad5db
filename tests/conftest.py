"""What holds for every test: no hook is left behind, no network, no deadline on slow machines."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from typing import Any

# two threads that share a busy core wait for each other at every tiny operation, in what tests start as well
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from torch.optim import optimizer

torch.set_num_threads(1)

hypothesis.settings.register_profile("precdoctor", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("precdoctor")


@pytest.fixture(autouse=True)
def _no_model_left() -> None:
    """Hide models of tests before, which would take the plain names: torch keeps some alive for ever.

    What is frozen is not among the objects of the collector; and collecting takes a millisecond only.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_hook_left() -> Iterator[None]:
    yield
    left = [*optimizer._global_optimizer_pre_hooks.values(), *optimizer._global_optimizer_post_hooks.values()]
    optimizer._global_optimizer_pre_hooks.clear()  # so that one culprit does not fail every test after it
    optimizer._global_optimizer_post_hooks.clear()
    assert not left, f"optimizer hooks left behind: {left}"
    assert not torch._C._len_torch_dispatch_stack(), "a dispatch mode was left behind"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise AssertionError(f"a test reached for the network: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
