"""What the forward pass keeps for the backward pass, measured on fake tensors: shapes without numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from precdoctor.evaluation import (
    Evaluation,
    EvaluationError,
    batch_size,
    forward,
    resized,
    rows,
    target_of,
)
from precdoctor.evaluation.evaluation import first_line
from precdoctor.memory.recipes import Recipe
from precdoctor.memory.steps import Training, autocast, packed, stored_dtype


class NeedsNumbers(Exception):
    """The model looks at numbers, which fake tensors do not have; one line says what it did."""


class Saved:
    """Adds up the storages that autograd keeps, each once, those of some tensors aside."""

    def __init__(self, apart: Iterator[Tensor]) -> None:
        self._apart = {_key(tensor) for tensor in apart}
        self._storages: dict[int, Any] = {}

    @property
    def bytes(self) -> int:
        """Return the bytes kept so far."""
        return sum(storage.nbytes() for storage in self._storages.values())

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Look at what is kept meanwhile."""

        def pack(tensor: Tensor) -> Tensor:
            if tensor.layout == torch.strided and _key(tensor) not in self._apart:
                # the storage itself, so that no other one gets its key
                self._storages[_key(tensor)] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


def estimated(evaluation: Evaluation, recipe: Recipe, batch: Any, size: int | None) -> int:
    """Return the bytes that a forward pass of ``size`` samples keeps; raises `NeedsNumbers`.

    ``size`` None: the batch as it is.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    device = torch.device("cpu") if evaluation.device.type == "meta" else evaluation.device
    try:
        with mode:
            model = packed(_fake(evaluation.model, device, stored_dtype(recipe)), recipe)
            fake = tree_map_only(Tensor, lambda t: _empty(t, device, t.dtype), batch)
            fake = fake if size is None else _of_size(fake, size)
            inputs = Training(recipe=recipe, model=model, optimizer=_NONE).inputs(fake)
            tensors = (leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
            saved = Saved(iter([*model.parameters(), *model.buffers(), *tensors]))
            with torch.random.fork_rng(devices=[]), saved.watch(), autocast(recipe, device.type):
                loss = training_loss(evaluation, forward(model, inputs), inputs)
            size_of_all = saved.bytes
            del loss
    except EvaluationError:
        raise
    except Exception as error:
        raise NeedsNumbers(f"{type(error).__name__}: {first_line(error)}") from None
    return size_of_all


def training_loss(evaluation: Evaluation, output: Any, batch: Any) -> Tensor:
    """Return the loss as a number to go back from; raises `EvaluationError` where it is none."""
    try:
        value = evaluation.loss(output, target_of(batch))
    except Exception as error:
        if isinstance(error, (RuntimeError, NotImplementedError)) and "data-dependent" in str(error):
            raise
        raise EvaluationError(
            f"{evaluation.name}: loss(output, target) raised {type(error).__name__}: {first_line(error)}"
        ) from None
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise EvaluationError(
            f"{evaluation.name}: loss(output, target) returned a {type(value).__name__}; to train, it must "
            "return a tensor"
        )
    if not value.requires_grad:
        raise EvaluationError(
            f"{evaluation.name}: the loss does not depend on any parameter that requires a gradient"
        )
    return value.mean()


def first_batch(evaluation: Evaluation, size: int | None) -> Any:
    """Return the first batch, cut or repeated to ``size`` samples; raises `EvaluationError`."""
    device = torch.device("cpu") if evaluation.device.type == "meta" else evaluation.device
    batch = next(rows(evaluation.batches, 2**62, evaluation.name, device), None)
    if batch is None:
        raise EvaluationError(f"{evaluation.name}: there are no batches; give at least one with a sample")
    if size is None:
        return batch
    if batch_size(batch) is None:
        raise EvaluationError(
            f"{evaluation.name}: the tensors of a batch do not share their first dimension, so it can't be "
            f"made {size} samples; leave --batch out and let build() return batches of the size you want"
        )
    return resized(batch, size)


def _fake(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a copy with fake parameters and buffers of the dtype; within the mode. Ties stay ties."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        # made in the dtype: Module.to would swap what a fake tensor does not let it swap
        fake: Tensor = _empty(tensor, device, dtype if tensor.is_floating_point() else tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = fake
    return copy.deepcopy(model, memo).train()


def _empty(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=device)


def _of_size(batch: Any, size: int) -> Any:
    return tree_map_only(Tensor, lambda t: t.new_empty((size, *t.shape[1:])), batch)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


#: nothing is stepped here
_NONE: Any = None
