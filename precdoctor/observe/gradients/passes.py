"""Backward passes: how many come before each optimizer step, and whether attempts at a step were left out.

Where a program leaves a step out, twice as many passes as usual come before the next one. A loss scale, the
program's own too, is then lowered: what ``backward`` is called on is smaller in the attempt that follows.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from precdoctor.evidence import Attempts

#: passes that are remembered
_MOST = 4096


class Passes:
    """Counts backward passes; told of each, and of each step."""

    def __init__(self) -> None:
        #: what passes were called on, times the gradient that they began with; None where that is no number
        self._roots: list[Tensor | None] = []
        #: passes that came before each step
        self._gaps: list[int] = []
        self._since = 0

    def note(self, outputs: Sequence[Any], seeds: Sequence[Any]) -> None:
        """Take note of a backward pass."""
        self._since += 1
        if len(self._roots) < _MOST:
            self._roots.append(_size(outputs, seeds))

    def stepped(self) -> None:
        """Take note that an optimizer has made a step."""
        if self._since and sum(self._gaps) < _MOST:
            self._gaps.append(self._since)
        self._since = 0

    def evidence(self) -> Attempts:
        """Return how many attempts at a step there were, and what came after those that were left out."""
        if not self._gaps:
            return Attempts()
        usual, _ = min(Counter(self._gaps).items(), key=lambda item: (-item[1], item[0]))
        made = left_out = first = 0
        ratios = []
        for gap in self._gaps:
            attempts = gap // usual if gap % usual == 0 else 1
            made += attempts
            left_out += attempts - 1
            for each in range(attempts - 1):
                start = first + each * usual
                before, after = (self._size(start + shift, usual) for shift in (0, usual))
                if before and after:
                    ratios.append(after / before)
            first += gap
        ratio = statistics.median(ratios) if ratios else None
        return Attempts(made=made, left_out=left_out, loss_ratio=ratio)

    def _size(self, start: int, count: int) -> float | None:
        """Return the mean magnitude of the losses of an attempt."""
        roots = [r for r in self._roots[start : start + count] if r is not None]
        if len(roots) < count:
            return None
        size = float(torch.stack([r.abs().reshape(()) for r in roots]).mean())
        return size if 0 < size < float("inf") else None


def _size(outputs: Sequence[Any], seeds: Sequence[Any]) -> Tensor | None:
    output, seed = (*outputs, *seeds) if len(outputs) == len(seeds) == 1 else (None, None)
    if not (isinstance(output, Tensor) and isinstance(seed, Tensor) and output.numel() == seed.numel() == 1):
        return None
    try:
        return output.detach().double() * seed.detach()
    except RuntimeError:  # seeds of many directions at once
        return None
