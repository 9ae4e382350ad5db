"""Which elements of a tensor are watched, and how they are fetched without a copy of the rest.

Small tensors are watched whole. Large ones through runs of neighbouring elements (one cache line), laid
out with an odd stride: a power-of-two stride would always hit the same columns of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

#: elements of a run: one cache line of float32
RUN = 16
#: bytes per watched element, measured: ledgers and the replay's passing copies; below float32 the
#: optimizer's state and weight decay are compared as well
_BYTES, _LOW_BYTES = 250, 450


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """The watched elements of a tensor with ``numel`` elements, as flat positions."""

    numel: int
    #: number of runs and their distance; 0 runs: the tensor is watched whole
    runs: int = 0
    stride: int = 0

    @classmethod
    def of(cls, numel: int, limit: int) -> Watch:
        """Choose at most ``limit`` elements (0 = all) of a tensor of ``numel`` elements."""
        runs = limit // RUN
        if limit == 0 or numel <= limit or runs < 2:
            return cls(numel=numel)
        stride = (numel - RUN) // (runs - 1)
        if stride < RUN:
            return cls(numel=numel)
        if stride % 2 == 0 and stride > RUN:
            stride -= 1
        return cls(numel=numel, runs=runs, stride=stride)

    @property
    def count(self) -> int:
        """Return the number of watched elements."""
        return self.runs * RUN if self.runs else self.numel

    @property
    def cluster(self) -> int:
        """Return how many neighbours count as one independent observation."""
        return RUN if self.runs else 1

    def position(self, index: int) -> int:
        """Return the flat position in the tensor of the watched element ``index``."""
        if not self.runs:
            return index
        return (index // RUN) * self.stride + index % RUN

    def view(self, tensor: Tensor) -> Tensor:
        """Return the watched elements of a tensor: a view where its layout allows, else a copy."""
        tensor = tensor.detach()
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        if not self.runs:
            return tensor.view(-1)
        return tensor.as_strided((self.runs, RUN), (self.stride, 1))


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is an ordinary one, with elements in memory that can be looked at.

    Of others (subclasses that wrap tensors, sparse, meta or quantized ones) not even a weak reference is
    held: torch swaps subclasses in place when a module moves, and refuses tensors that have one; under
    `torch.__future__.set_swap_module_params_on_conversion` all of them. Those of `torch.func` stand for many
    and have no memory.
    """
    ordinary = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    special = tensor.is_meta or tensor.is_quantized or is_functorch_wrapped_tensor(tensor)
    return ordinary and not special and not torch.__future__.get_swap_module_params_on_conversion()


def inside(tensor: Tensor) -> Tensor:
    """Return the tensor in memory that one of `torch.func` stands for; any other is returned itself."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def limit_for(numels: list[int], element_sizes: list[int], watch: int | None, memory: float) -> int:
    """Return how many elements of each tensor of an optimizer are watched; 0 stands for "all".

    ``watch`` is the user's wish per tensor (0 = all). Without one: as many as keep what watching takes
    below ``memory`` (a share of the parameters' bytes, at least 2 MB) and 2**18 elements in all, but 64
    per tensor. With 1,024 a share has an interval of +-3 % after one step, less after several.
    """
    if watch is not None:
        return watch
    parameter_bytes = sum(n * size for n, size in zip(numels, element_sizes, strict=True))
    per_element = max((_LOW_BYTES if size < 4 else _BYTES for size in element_sizes), default=_BYTES)
    total = min(2**18, max(int(memory * parameter_bytes), 2_000_000) // per_element)
    limit = 1 << 14
    while limit > 64 and sum(min(n, limit) for n in numels) > total:
        limit //= 2
    return limit


def staging_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that holds values of ``dtype`` exactly while they are examined."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Flat:
    """A flat buffer with one chunk per watched tensor, filled by a single call."""

    def __init__(self, watches: list[Watch], dtype: torch.dtype, device: torch.device) -> None:
        self.watches = watches
        self.values = torch.zeros(sum(w.count for w in watches), dtype=dtype, device=device)
        pieces = torch.split(self.values, [w.count for w in watches])
        self.chunks = [p.view(w.runs, RUN) if w.runs else p for p, w in zip(pieces, watches, strict=True)]

    def fetch(self, tensors: list[Tensor | None]) -> Tensor:
        """Copy the watched elements of the tensors here (zeros for None) and return the buffer.

        No view of them is kept: it would hold their memory when the run lets go of it.
        """
        filled, sources = [], []
        for index, (tensor, watch) in enumerate(zip(tensors, self.watches, strict=True)):
            chunk = self.chunks[index]
            if tensor is None:
                chunk.zero_()
                continue
            if watch.runs:
                tensor = watch.view(tensor)
            elif chunk.shape != tensor.shape:  # a tensor watched whole is copied as it is, in any layout
                chunk = self.chunks[index] = chunk.view(tensor.shape)
            filled.append(chunk)
            sources.append(tensor)
        if sources:
            torch._foreach_copy_(filled, sources)
        return self.values
