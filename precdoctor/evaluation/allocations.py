"""How many bytes of tensors exist while something runs, seen operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts the storages that operations make, and those of them that still exist; a context.

    What exists before can be counted in with `add`. Storages that a kernel makes and drops inside one
    operation are not seen. Works alike on the CPU, on other devices, and on fake tensors.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        #: bytes that exist now, and the most that existed at once
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of these tensors, each once."""
        for tensor in tensors:
            self._note(tensor, counts=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note what it made."""
        # what goes in and was not seen before was there before: views of it and writing into it make nothing
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._note(leaf, counts=False)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf, counts=True)
        return result

    def _note(self, tensor: Tensor, *, counts: bool) -> None:
        if tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key = id(storage)  # torch keeps one Python object per storage while it lives
        known = self._known.get(key)
        if known is not None and known() is storage:
            return
        size = storage.nbytes() if counts else 0

        def freed(_: Any) -> None:
            self.live_bytes -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors' storages, each counted once."""
    storages = {}
    for tensor in tensors:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            storages[id(storage) if tensor.is_meta else storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
