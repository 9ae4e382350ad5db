"""A model, its data and its loss, checked before anything is computed with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: loss(output, target): one number for all samples, or one per sample
Loss = Callable[[Any, Any], Any]


class EvaluationError(ValueError):
    """What was given can't be evaluated; one line says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What ``build()`` returned, and where it came from."""

    #: as it is shown: "eval.py:build"
    name: str
    model: nn.Module
    #: may be endless, and may be read only once
    batches: Iterable[Any]
    loss: Loss
    #: what is worth knowing of it, in sentences
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, model: object, batches: object, loss: object, *, name: str, notes: tuple[str, ...] = ()
    ) -> Evaluation:
        """Return the three together; raises `EvaluationError` for what is none of the kind."""
        if not isinstance(model, nn.Module):
            raise EvaluationError(
                f"{name}: the model is a {type(model).__name__}; it must be a torch.nn.Module"
            )
        if isinstance(batches, (str, bytes)) or not isinstance(batches, Iterable):
            raise EvaluationError(
                f"{name}: the batches are a {type(batches).__name__}; they must be iterable, such as a "
                "DataLoader or a list of (inputs, target)"
            )
        if not callable(loss):
            raise EvaluationError(
                f"{name}: the loss is a {type(loss).__name__}; it must be a function loss(output, target)"
            )
        if next(model.parameters(), None) is None:
            raise EvaluationError(f"{name}: the model has no parameters, so there is nothing to compare")
        return cls(name=name, model=model, batches=batches, loss=loss, notes=notes)

    @property
    def device(self) -> torch.device:
        """Return the device of the model's first parameter."""
        return next(self.model.parameters()).device


def check_model(evaluation: Evaluation) -> None:
    """Raise `EvaluationError` where the parameters hold no numbers, or lie on several devices."""
    tensors = [*evaluation.model.named_parameters(), *evaluation.model.named_buffers()]
    for name, tensor in tensors:
        if tensor.is_meta:
            raise EvaluationError(
                f"{evaluation.name}: {name} is on the meta device and holds no numbers; call "
                "model.to_empty(device='cpu') and load its weights before build() returns"
            )
    devices = sorted({str(tensor.device) for _, tensor in tensors})
    if len(devices) > 1:
        raise EvaluationError(
            f"{evaluation.name}: the model is spread over {', '.join(devices)}; put it on one device"
        )


def to_device(evaluation: Evaluation, device: str) -> None:
    """Move the model; raises `EvaluationError` for a device that is not there."""
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
        evaluation.model.to(where)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EvaluationError(
            f"device {device!r} can't be used here ({first_line(error)}); leave --device out"
        ) from None


def first_line(error: BaseException) -> str:
    """Return an exception's kind where it says nothing, else the first line of what it says."""
    text = str(error).strip().partition("\n")[0]
    return text or type(error).__name__


def is_floating(tensor: Tensor) -> bool:
    """Tell whether a tensor holds real floating-point numbers."""
    return tensor.is_floating_point()
