"""How rules read checkpoints: what is trained, what is low, which tensors rounding can have held in place."""

from __future__ import annotations

from collections.abc import Iterable

from precdoctor.evidence import Contents, Prognosis, Stored, Tensor
from precdoctor.rules.finding import Subject
from precdoctor.rules.reading import FLOAT32_BITS, format_named


def trainable(contents: Contents) -> list[Tensor]:
    """Return the tensors that may be trained: numbers with a fraction that are no buffer and no state."""
    return [t for t in contents.tensors if t.kind == "parameter" and not _is_table(t)]


def _is_table(tensor: Tensor) -> bool:
    """Tell whether the values are those of a mask, of positions or of frequencies."""
    first, trained = tensor.first or tensor.second, bool(tensor.stepped)
    return first is not None and not trained and (first.monotonic or first.is_mask)


def is_low(stored: Stored | None) -> bool:
    """Tell whether a tensor is kept in a floating-point format below float32."""
    fmt = format_named(stored.format) if stored is not None else None
    return fmt is not None and fmt.bits < FLOAT32_BITS


def is_all_ones(tensor: Tensor) -> bool:
    """Tell whether a weight of one dimension is exactly 1.0 everywhere, as the weights of norms begin."""
    stored = tensor.last
    return stored is not None and len(stored.shape) == 1 and stored.constant == 1.0


def in_store(tensor: Tensor) -> Prognosis | None:
    """Return the prognosis in the format in which the weight is kept."""
    return next((p for p in tensor.prognoses if p.stored), None)


def holds_state(contents: Contents) -> bool:
    """Tell whether the last file holds the state of an optimizer: training is to go on from it."""
    return bool(contents.files[-1].optimizers)


def subjects(tensors: Iterable[Tensor]) -> tuple[Subject, ...]:
    """Return tensors as subjects of a finding."""
    return tuple(Subject(kind=tensor.kind, name=tensor.name) for tensor in tensors)


def elements(tensors: Iterable[Tensor]) -> int:
    """Return the number of elements of tensors."""
    return sum(numel(tensor) for tensor in tensors)


def numel(tensor: Tensor) -> int:
    """Return the number of elements of a tensor."""
    stored, amount = tensor.last, 1
    for size in stored.shape if stored is not None else (0,):
        amount *= size
    return amount
