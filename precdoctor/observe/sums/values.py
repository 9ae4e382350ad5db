"""Tensors as operations have left them, beside what exact arithmetic would have made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.lineage.origins import LOW
from precdoctor.observe.sums import elementwise
from precdoctor.observe.sums.elementwise import Call, Sampler
from precdoctor.observe.sums.slots import Slot, version_of
from precdoctor.observe.watch import is_plain

#: values that are remembered at first, beyond which those that are gone are looked for
_MANY = 512
#: values that went into another, of which it is remembered
_MOST_TERMS = 32


@dataclass(slots=True, eq=False)
class Value:
    """A tensor as it was left by the last operation that was followed."""

    memory: Memory
    layout: tuple[Any, ...]
    dtype: torch.dtype
    version: int
    #: float64 samples: what exact arithmetic would have made of it, and what it holds
    exact: Any
    actual: Any
    #: by how much it changes with others, that went into it
    terms: dict[Value, float] = field(default_factory=dict)
    #: the instruction that made it, and whether trained weights were added on the way
    key: tuple[Any, ...] | None = None
    merged: bool = False
    #: what is added to again and again, of which this is one value
    slot: Slot | None = None

    def take(self, others: dict[Value, float]) -> None:
        """Note what went into it, and what had gone into that."""
        for source, slope in others.items():
            for term, by in ((source, 1.0), *source.terms.items()):
                self.terms[term] = self.terms.get(term, 0.0) + slope * by
        self.terms = dict(list(self.terms.items())[:_MOST_TERMS])


class Values:
    """The values of tensors, by their place in memory."""

    def __init__(self) -> None:
        self.sampler = Sampler()
        self._known: dict[tuple[Any, ...], Value] = {}
        self._limit = _MANY

    def at(self, tensor: Tensor) -> Value | None:
        """Return what is known of a tensor; None where an operation wrote it that is not followed."""
        if not is_plain(tensor):
            return None
        known = self._known.get((storage_key(tensor), *_layout(tensor)))
        if known is None or known.memory.gone:
            return None
        return known if known.slot is not None or known.version == version_of(tensor) else None

    def enter(self, tensor: Tensor, exact: Any, actual: Any, *, written: bool = False) -> Value:
        """Note what a tensor holds now, and should; ``written``: by the operation in place that is at its
        end.
        """
        if len(self._known) >= self._limit:
            self.forget()
            self._limit = max(_MANY, 2 * len(self._known))
        value = Value(
            memory=Memory(tensor),
            layout=_layout(tensor),
            dtype=tensor.dtype,
            version=version_of(tensor) + written,  # such a write is counted when the operation is over
            exact=exact,
            actual=actual,
        )
        key = (value.memory.key, *value.layout)
        replaced = self._known.get(key)
        if replaced is not None and replaced.slot is None:
            replaced.terms = {}
        self._known[key] = value
        return value

    def sample(self, tensor: Tensor) -> Tensor:
        """Return the watched elements of a tensor in float64."""
        sampled: Tensor = self.sampler(tensor, tensor.shape)
        return sampled

    def exact(self, operand: Any, shape: torch.Size) -> Any:
        """Return what an operand of a result of that shape should hold, as a sample or a number."""
        known = self.at(operand) if isinstance(operand, Tensor) and operand.shape == shape else None
        return known.exact if known is not None else self.sampler(operand, shape)

    def exactly(self, call: Call, samples: list[Any]) -> Any:
        """Return what an operation makes of samples, exactly."""
        factor = call.factor
        if isinstance(factor, Tensor):
            factor = self.sampler(factor, call.out.shape)
        return elementwise.exact(call.op, samples, factor)

    def forget(self) -> None:
        """Forget what is gone."""
        for key in [key for key, value in self._known.items() if value.memory.gone]:
            self._known.pop(key).terms = {}

    def let_go(self) -> None:
        """Forget what an optimizer's step may change: weights, their masters, and what was made from them."""
        self.forget()
        self._known = {
            key: value
            for key, value in self._known.items()
            if value.slot is not None
            or (value.key is not None and (value.dtype in LOW or len(value.actual) == 1))
        }

    def fall_asleep(self) -> None:
        """Keep what is added to, and nothing else."""
        self.forget()
        self._known = {key: value for key, value in self._known.items() if value.slot is not None}
        for value in self._known.values():
            value.terms = {}


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()
