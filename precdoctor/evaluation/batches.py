"""Batches: how a model is called with one, and how it falls into samples.

A batch is a tensor; a sequence, whose last item is the target and whose others are the model's arguments; or
a mapping of keyword arguments, which is the target as well. A sample is one index of the first dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only  # knows the outputs of transformers too

from precdoctor.evaluation.evaluation import EvaluationError, Loss, first_line


def check_batch(batch: Any, name: str) -> None:
    """Raise `EvaluationError` for a batch that holds no tensors, or that the model can't be called with."""
    if isinstance(batch, Tensor):
        return
    if isinstance(batch, Mapping):
        kinds = {type(key).__name__ for key in batch if not isinstance(key, str)}
        if kinds or not any(isinstance(leaf, Tensor) for leaf in tree_leaves(dict(batch))):
            raise EvaluationError(
                f"{name}: a batch is a mapping without tensors; its values must be tensors, its keys the "
                "names of the model's arguments"
            )
        return
    if not isinstance(batch, (tuple, list)):
        raise EvaluationError(
            f"{name}: a batch is a {type(batch).__name__}; it must be a tensor, (inputs, target) or a "
            "mapping of the model's arguments"
        )
    if len(batch) < 2:
        raise EvaluationError(f"{name}: a batch is a sequence of {len(batch)}; it must be (inputs, target)")
    wrong = [type(item).__name__ for item in batch if not list(_tensors(item))]
    if wrong:
        raise EvaluationError(
            f"{name}: a batch holds a {wrong[0]} where a tensor belongs; convert it with torch.as_tensor"
        )


def forward(model: nn.Module, batch: Any) -> Any:
    """Call the model with what the batch holds for it."""
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch[:-1])


def target_of(batch: Any) -> Any:
    """Return what the loss function gets beside the output."""
    return batch[-1] if isinstance(batch, (tuple, list)) else batch


def batch_size(batch: Any) -> int | None:
    """Return the number of samples; None where the tensors do not share their first dimension."""
    return _shared_size(batch)


def take(batch: Any, start: int, stop: int) -> Any:
    """Return some samples of a batch, or of an output."""
    return tree_map_only(Tensor, lambda tensor: tensor[start:stop], batch)


def resized(batch: Any, size: int) -> Any:
    """Return a batch of that many samples: the first ones, repeated where there are too few."""
    have = batch_size(batch)
    assert have
    index = torch.arange(size) % have
    return tree_map_only(Tensor, lambda tensor: tensor[index.to(tensor.device)], batch)


def move(value: Any, device: torch.device) -> Any:
    """Return the tensors of a batch on the device."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), value)


def cast_floating(value: Any, dtype: torch.dtype) -> Any:
    """Return the floating-point tensors in the dtype, the others as they are."""
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, value)


def rows(batches: Any, samples: int, name: str, device: torch.device) -> Iterator[Any]:
    """Yield batches, checked and on the device, until there are so many samples; the last is cut."""
    left = samples
    iterator = _iterated(batches, name)
    while left > 0:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise EvaluationError(
                f"{name}: reading a batch raised {type(error).__name__}: {first_line(error)}"
            ) from None
        check_batch(batch, name)
        size = batch_size(batch)
        if size == 0:
            continue
        if size is not None and size > left:
            batch = take(batch, 0, left)
        left -= min(size, left) if size is not None else 1
        yield move(batch, device)


def sample_losses(
    loss: Loss, output: Any, batch: Any, *, name: str, again: Callable[[Any], Any]
) -> list[float]:
    """Return the loss of each sample; of a batch without a shared first dimension, of the batch.

    A loss function that gives one number per sample is called once; one that gives a mean is called with
    each sample's part of the output. Where the output can't be cut, ``again(sample)`` computes it anew.
    """
    size = batch_size(batch)
    value = _loss(loss, output, target_of(batch), name)
    if size is None or size == 1:
        return [value.mean().item()]
    if value.dim() and value.shape[0] == size:
        return [float(one) for one in value.reshape(size, -1).mean(1).tolist()]
    cuttable = _shared_size(output) == size
    losses = []
    for index in range(size):
        one = take(batch, index, index + 1)
        own = take(output, index, index + 1) if cuttable else again(one)
        losses.append(_loss(loss, own, target_of(one), name).mean().item())
    return losses


def _loss(loss: Loss, output: Any, target: Any, name: str) -> Tensor:
    try:
        value = loss(output, target)
    except Exception as error:
        raise EvaluationError(
            f"{name}: loss(output, target) raised {type(error).__name__}: {first_line(error)}"
        ) from None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        kind = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise EvaluationError(
            f"{name}: loss(output, target) returned a {kind}; it must return a number, or one per sample"
        )
    return value.detach().double()


def _iterated(batches: Any, name: str) -> Iterator[Any]:
    try:
        return iter(batches)
    except Exception as error:
        raise EvaluationError(
            f"{name}: the batches can't be read: {type(error).__name__}: {first_line(error)}"
        ) from None


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _shared_size(value: Any) -> int | None:
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in _tensors(value)}
    return sizes.pop() if len(sizes) == 1 else None
