"""Losses, predictions and times of one data set under several models, batch by batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from precdoctor.comparison.formats import REFERENCE, Choice
from precdoctor.evaluation import (
    Allocations,
    Evaluation,
    EvaluationError,
    batch_size,
    cast_floating,
    forward,
    sample_losses,
    target_of,
)
from precdoctor.evaluation.evaluation import first_line

#: timed rounds at least, over again where there are fewer batches, and seconds after which it is enough
_ROUNDS, _ENOUGH_S = 7, 20.0
#: models that draw random numbers draw the same in every format
_SEED = 0


class Unavailable(EvaluationError):
    """A format in which the model can't be run here."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one format gave so far."""

    losses: list[float] = field(default_factory=list)
    #: seconds per sample, one entry per timed round
    seconds: list[float] = field(default_factory=list)
    changed: int = 0
    predictions: int = 0
    working_bytes: int | None = None


@dataclass(slots=True, kw_only=True)
class Data:
    """The batches, as read once, and the loss."""

    evaluation: Evaluation
    batches: Sequence[Any]
    #: float32's predictions of each batch, once it has run; None where the output is no prediction
    predicted: list[Tensor | None] = field(default_factory=list)

    def run(self, model: nn.Module, dtype: torch.dtype, batch: Any) -> Any:
        """Return the model's output for a batch whose inputs are cast to the dtype."""
        with torch.no_grad(), torch.random.fork_rng(devices=_cuda(self.evaluation.device)):
            torch.manual_seed(_SEED)
            return forward(model, cast_inputs(batch, dtype))

    def losses(self, model: nn.Module, dtype: torch.dtype, batch: Any, output: Any) -> list[float]:
        """Return the loss of each sample, computed from the output in float32."""
        return sample_losses(
            self.evaluation.loss,
            cast_floating(output, torch.float32),
            batch,
            name=self.evaluation.name,
            again=lambda one: cast_floating(self.run(model, dtype, one), torch.float32),
        )


def cast_inputs(batch: Any, dtype: torch.dtype) -> Any:
    """Return the batch with the model's floating-point inputs in the dtype, the target as it is."""
    if isinstance(batch, (tuple, list)):
        return (*(cast_floating(item, dtype) for item in batch[:-1]), batch[-1])
    return cast_floating(batch, dtype)


def warm_up(data: Data, choice: Choice, model: nn.Module) -> Tally:
    """Run the model once, for its memory and to warm up; raises `Unavailable` where it can't run."""
    assert choice.dtype is not None
    tally = Tally()
    try:
        counter = Allocations()
        with counter:
            output = data.run(model, choice.dtype, data.batches[0])
            tally.working_bytes = counter.peak_bytes
        del output
        data.run(model, choice.dtype, data.batches[0])  # again, without the counter
        _wait(data.evaluation.device)
    except EvaluationError:
        raise
    except Exception as error:
        name = data.evaluation.name
        if choice.name == REFERENCE:
            raise EvaluationError(
                f"{name}: the model raised {type(error).__name__} on the first batch: {first_line(error)}"
            ) from None
        raise Unavailable(
            f"{name}: can't run in {choice.name} on {data.evaluation.device}: {first_line(error)}; "
            "leave it out of --formats"
        ) from None
    return tally


def interleaved(
    data: Data,
    models: Sequence[tuple[Choice, nn.Module]],
    tallies: Sequence[Tally],
    progress: Callable[[int], None],
) -> None:
    """Pass every batch through every model, in an order that turns, and note losses, predictions and times.

    Float32 is the first of the models. Times are of the forward pass alone.
    """
    for place, batch in enumerate(data.batches):
        predicted: dict[int, Tensor | None] = {}
        for index in _turned(len(models), place):
            choice, model = models[index]
            output = _timed(data, choice, model, batch, tallies[index])
            assert choice.dtype is not None
            tallies[index].losses += data.losses(model, choice.dtype, batch, output)
            predicted[index] = predictions(output, batch)
            del output
        data.predicted.append(predicted[0])
        for index in range(1, len(models)):
            count_changes(tallies[index], predicted[index], predicted[0])
        progress(place + 1)
    start = time.perf_counter()
    for extra in range(_ROUNDS - len(data.batches)):
        if time.perf_counter() - start > _ENOUGH_S:
            break
        for index in _turned(len(models), extra):
            choice, model = models[index]
            _timed(data, choice, model, data.batches[extra % len(data.batches)], tallies[index])


def weights_only(data: Data, model: nn.Module, progress: Callable[[int], None]) -> Tally:
    """Pass every batch through a model with rounded weights, in float32; not timed."""
    tally = Tally()
    for place, batch in enumerate(data.batches):
        output = data.run(model, torch.float32, batch)
        tally.losses += data.losses(model, torch.float32, batch, output)
        count_changes(tally, predictions(output, batch), data.predicted[place])
        progress(place + 1)
    return tally


def predictions(output: Any, batch: Any) -> Tensor | None:
    """Return the index of the largest output of each prediction; None for outputs that are none.

    Classes are the last dimension; the second one where the integer target is shaped for that, as images
    are. Places that the target leaves out (negative labels) do not count.
    """
    scores = next((t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()), None)
    if scores is None or scores.dim() < 2:
        return None
    target = target_of(batch)
    if not isinstance(target, Tensor) or target is batch:
        return scores.argmax(-1).flatten().int() if scores.shape[-1] > 1 and target is not batch else None
    if target.is_floating_point() or target.dtype == torch.bool:
        return None
    if scores.shape[:-1] == target.shape:
        dim = -1
    elif scores.dim() > 2 and (scores.shape[0], *scores.shape[2:]) == tuple(target.shape):
        dim = 1
    else:
        return scores.argmax(-1).flatten().int() if scores.shape[-1] > 1 else None
    if scores.shape[dim] < 2:
        return None
    return scores.argmax(dim)[target >= 0].int()


def count_changes(tally: Tally, ours: Tensor | None, theirs: Tensor | None) -> None:
    """Count predictions, and those that differ."""
    if ours is not None and theirs is not None and ours.shape == theirs.shape:
        tally.changed += int((ours != theirs).sum().item())
        tally.predictions += ours.numel()


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios, round by round: what slows a round slows both."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def _timed(data: Data, choice: Choice, model: nn.Module, batch: Any, tally: Tally) -> Any:
    assert choice.dtype is not None
    _wait(data.evaluation.device)
    start = time.perf_counter()
    output = data.run(model, choice.dtype, batch)
    _wait(data.evaluation.device)
    tally.seconds.append((time.perf_counter() - start) / (batch_size(batch) or 1))
    return output


def _turned(count: int, by: int) -> list[int]:
    return [(index + by) % count for index in range(count)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
