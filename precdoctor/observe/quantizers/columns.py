"""Columns of data that a quantizer uses as zero, because others that are far larger set its scale.

A column is what one feature, or one channel of images, is in all rows. It is lost where it varies, is hardly
ever 0 itself and yet nothing else comes out of it, in any pass that was looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: columns, and rows, of which shares say something
_FEWEST, _ROWS = 8, 8
#: values of a tensor that are looked at
_MOST = 1 << 20
#: how much larger the largest column is than one that counts as lost (negative values of a GELU are 18 times
#: smaller than positive ones of 3, and their units are off rather than flushed)
_LARGER = 32.0
#: share of a column's values that are not 0, from which it is no sparse one
_DENSE = 0.25


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of some data a scale may flush, and which come through."""

    #: they vary, and are not sparse
    varied: Tensor
    #: some value is not used as zero, or would not be for want of the others
    kept: Tensor

    #: times that they were looked at
    passes: int = 1

    def then(self, later: Columns) -> Columns:
        """Return what holds of this and a later pass with as many columns."""
        return Columns(self.varied | later.varied, self.kept | later.kept, self.passes + later.passes)

    @property
    def count(self) -> int:
        """Return the number of columns that vary."""
        return int(self.varied.sum())

    @property
    def lost(self) -> int:
        """Return how many of them never come through."""
        return int((self.varied & ~self.kept).sum())


def columns_of(data: Tensor) -> Columns | None:
    """Return which columns vary, and which are not far smaller than the largest; None where it has none."""
    rows = _rows(data)
    if rows is None:
        return None
    size = rows.abs().amax(0)
    varied = (rows.amax(0) != rows.amin(0)) & ((rows != 0).float().mean(0) >= _DENSE)
    return Columns(varied, varied & (size * _LARGER >= size.max()))


def after_rounding(columns: Columns | None, codes: Tensor) -> Columns | None:
    """Return the same with what came out of the rounding."""
    rows = _rows(codes) if columns is not None else None
    if columns is None or rows is None or rows.shape[1] != len(columns.varied):
        return None
    return Columns(columns.varied, columns.kept | (rows != 0).any(0))


def _rows(data: Tensor) -> Tensor | None:
    """Return data as rows of columns: the last dimension, or the channels of images."""
    if data.dim() < 2:
        return None
    batch = max(len(data) * _MOST // max(data.numel(), _MOST), 1)
    rows = data.detach()[:batch].movedim(1 if data.dim() > 3 else -1, -1).flatten(0, -2).float()
    if rows.shape[0] < _ROWS or rows.shape[1] < _FEWEST or not bool(torch.isfinite(rows).all()):
        return None
    return None if _is_distribution(rows) else rows


def _is_distribution(rows: Tensor) -> bool:
    """Tell whether the values of each row are shares of one sum: a probability that is 0 is a small one."""
    sums = rows.sum(1)
    return bool((rows >= 0).all()) and bool(((sums - sums.mean()).abs() <= 0.01 * sums.mean()).all())
