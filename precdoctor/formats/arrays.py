"""Block formats on numpy arrays: there and back, in float64, for tables that must not load torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from precdoctor.formats.block import BlockFormat


def fake_quantize(x: NDArray[Any], fmt: BlockFormat) -> NDArray[np.float64]:
    """Return the array quantized by ties_to_even and back; NaN where a scale can't be."""
    blocks = _blocks(x, fmt)
    low, high = blocks.min(axis=1, initial=0), blocks.max(axis=1, initial=0)
    extent = high - low if fmt.affine else np.maximum(-low, high)
    tensor_scale = fmt.tensor_scale(float(np.abs(x).max(initial=0)))
    scale = np.array([fmt.block_scale(each, tensor_scale) for each in extent.tolist()])
    scale = (scale * tensor_scale)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        elements = np.where((scale == 0) | np.isnan(scale), 0, blocks / scale)
        lowest, highest = fmt.codebook.values[0], fmt.codebook.values[-1]
        zero = np.clip(np.nan_to_num(lowest - np.round(low[:, None] / scale)), lowest, highest)
    zero = zero if fmt.affine else np.zeros_like(scale)
    thresholds = [np.nextafter(middle, -np.inf) if up else middle for middle, up in fmt.codebook.thresholds]
    codes = np.searchsorted(thresholds, elements + zero)
    return _joined((np.array(fmt.codebook.values)[codes] - zero) * scale, x, fmt)


def _blocks(x: NDArray[Any], fmt: BlockFormat) -> NDArray[np.float64]:
    """Return one row per block; the last ones of a row of the array are filled up with zeros."""
    grid = fmt.grid(x.shape)
    rows = x.astype(np.float64).reshape(grid.rows, grid.length)
    return np.pad(rows, ((0, 0), (0, -grid.length % grid.size))).reshape(grid.blocks, grid.size)


def _joined(blocks: NDArray[np.float64], like: NDArray[Any], fmt: BlockFormat) -> NDArray[np.float64]:
    grid = fmt.grid(like.shape)
    width = grid.length + -grid.length % grid.size
    return blocks.reshape(grid.rows, width)[:, : grid.length].reshape(like.shape)
