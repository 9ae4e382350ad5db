"""What a cast does to integers, and to numbers that are evenly spaced: measured on the numbers themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: numbers that are looked at in one tensor
MOST = 1 << 16
#: length from which equal distances make a sequence
_LONG = 8
#: coordinates of a point
_AXES = (2, 3, 4)
#: columns of a table that are told apart, and rows that tell whether they hold integers
_COLUMNS, _FEW = 64, 16
#: significand bits of the formats that are looked at: integers up to 2**bits are exact
BITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}


@dataclass(frozen=True, slots=True)
class Loss:
    """What became of some numbers."""

    numbers: int
    distinct_before: int
    distinct_after: int
    changed: int
    largest: float
    #: largest error of those that stayed finite
    error: float
    overflowed: int
    sequence: bool
    one_per_row: bool = False


def loss_between(before: Tensor, after: Tensor, unit: float = 1.0) -> Loss | None:
    """Return what a cast did to numbers that lie multiples of ``unit`` apart; None where all still do.

    Integers beyond 2**53 are compared as float64 has them.
    """
    exact = before.detach().reshape(-1)[:MOST].double()
    got = after.detach().reshape(-1)[:MOST].double()
    multiples, rounded = _multiples(exact, exact, unit), _multiples(got, exact, unit)
    finite = torch.isfinite(got)
    overflowed = int((~finite & torch.isfinite(exact)).sum())
    # an integer that moves by less than half a unit is the same one
    changed = int((multiples != rounded).sum())
    first, last = int(torch.unique(multiples).numel()), int(torch.unique(rounded).numel())
    if not changed and last >= first:
        return None
    off = (got - exact)[finite].abs()
    return Loss(
        numbers=exact.numel(),
        distinct_before=first,
        distinct_after=last,
        changed=changed,
        largest=float(exact.abs().max()),
        error=float(off.max()) if off.numel() else float("inf"),
        overflowed=overflowed,
        sequence=is_sequence(before, unit),
        one_per_row=before.dim() < 2 or before.shape[-1] == 1,
    )


def beyond(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether integers among these are not exact in a format."""
    if not tensor.numel() or tensor.dtype in (torch.bool, torch.uint8, torch.int8) or tensor.is_complex():
        return False
    limit = _last_exact(dtype)
    low, high = torch.aminmax(tensor)
    return bool(float(high) > limit or float(low) < -limit)


def _last_exact(dtype: torch.dtype) -> float:
    """Return the integer up to which a format has all of them."""
    return 2 / torch.finfo(dtype).eps


def _multiples(numbers: Tensor, beside: Tensor, unit: float) -> Tensor:
    """Return how many units numbers lie beyond the first of others: not all ranges begin at a multiple."""
    first = beside[:1]
    return ((numbers - first.where(first.isfinite(), 0)) / unit).round()


def is_sequence(numbers: Tensor, unit: float = 1.0) -> bool:
    """Tell whether numbers follow one another with equal distances other than 0, along some dimension.

    So do the coordinates of a grid, one point per row: each some times in a row, or all over and over.
    """
    for dimension in range(numbers.dim()):
        size = numbers.shape[dimension]
        if size < _LONG or numbers.numel() // size > MOST:
            continue
        row = numbers.detach().movedim(dimension, -1)[..., :MOST].reshape(-1, min(size, MOST))[0].double()
        steps = _multiples(row, row, unit).diff()
        if bool(steps[0] != 0) and bool((steps == steps[0]).all()):
            return True
    if numbers.dim() != 2 or numbers.shape[1] not in _AXES:
        return False
    columns = numbers.detach()[:MOST].double().T
    return all(_is_axis(column) for column in columns)


def _is_axis(column: Tensor) -> bool:
    """Tell whether numbers are those of one axis of a grid, which has a unit of its own."""
    places = torch.unique(column)
    if len(places) < _LONG or not bool(places.isfinite().all()):
        return False
    column = _multiples(column, column, float(places[-1] - places[0]) / (len(places) - 1))
    times = int(column.diff().nonzero()[0]) + 1
    column = column[: len(column) // times * times].reshape(-1, times)
    steps = column[:, 0].diff()
    breaks = (steps != steps[:1]).nonzero().reshape(-1)
    length = int(breaks[0]) + 1 if len(breaks) else len(column)
    rounds = column[: len(column) // length * length].reshape(-1, length, times)
    return length >= _LONG and bool((rounds == rounds[:1, :, :1]).all())


def integral(numbers: Tensor) -> Tensor | None:
    """Return which columns of a tensor hold integers, not all the same, by a few of them; None for none.

    Of a tensor with one dimension, or many columns, all is one column. Where a format has no fractions any
    more, as at 1e9 in float32, that numbers are integers says nothing about them.
    """
    wide = numbers.dim() < 2 or numbers.shape[-1] > _COLUMNS
    table = numbers.detach().reshape(-1, 1 if wide else numbers.shape[-1])
    few = table[:: max(table.shape[0] // _FEW, 1)][:_FEW].double()
    whole = (few == few.round()).all(0) & (few != few[0]).any(0)
    if bool(whole.any()):
        whole &= table.abs().amax(0) <= _last_exact(numbers.dtype)
    if not bool(whole.any()):
        return None
    return torch.ones_like(whole) if wide else whole


def ulp_of(largest: float, dtype: torch.dtype) -> float:
    """Return the distance between neighbours at the largest of some numbers."""
    return float(2.0 ** (torch.tensor(largest, dtype=torch.float64).log2().floor() - BITS[dtype] + 1))


def fills_grid(numbers: Tensor, ulp: float) -> bool:
    """Tell whether a quarter of the numbers are odd multiples of the ulp: they use its last bit."""
    multiples = (numbers.detach().reshape(-1)[:MOST].double() / ulp).round()
    return float((multiples % 2 == 1).double().mean()) >= 0.25
