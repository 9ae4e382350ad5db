"""The ledger of what float16, or 8 bits, did to gradients, by operation and line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from precdoctor.evidence import GradientLoss, Place
from precdoctor.numerics import format_of
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.probe.operations import Operation

#: operations whose result is gradients again where they are given such, if it has more than one element
_AGAIN = frozenset(
    f"aten::{name}" for name in ("add", "add_", "_foreach_add", "_foreach_add_", "_to_copy", "copy_")
)


#: see `GradientLoss.kind`
Kind = Literal["underflow", "overflow", "patched"]


@dataclass(slots=True)
class _Seen:
    kind: Kind
    op: str
    backward: bool
    spot: Spot | None
    dtype: torch.dtype
    again: bool
    seen: int = 0
    #: (lost, largest, share, projection), pass and step, not read off before the end
    results: list[tuple[Tensor, int, int]] = field(default_factory=list)


class Losses:
    """Losses by kind, operation and line; ``passes`` counts the backward passes that were looked at."""

    def __init__(self, code: UserCode) -> None:
        self._code = code
        self._found: dict[tuple[Any, ...], _Seen] = {}
        self.passes = 0

    def note(
        self, kind: Kind, operation: Operation, result: Tensor, dtype: torch.dtype = torch.float16
    ) -> None:
        """Note an operation: whether it lost, the largest exact result, share lost and what is left."""
        spot = self._code.innermost(operation.frame)[0]
        key = (kind, operation.name, operation.backward, spot, dtype)
        seen = self._found.get(key)
        if seen is None:
            again = operation.name in _AGAIN and any(t.numel() > 1 for t in operation.inputs)
            seen = _Seen(kind, operation.name, operation.backward, spot, dtype, again)
            self._found[key] = seen
        seen.seen += 1
        if result.device.type != "cpu" or bool(result[0]):
            seen.results.append((result, self.passes, operation.step))

    def records(
        self, place: Callable[[Spot | None], Place | None], casts: Mapping[torch.dtype, Spot | None]
    ) -> tuple[GradientLoss, ...]:
        """Return those that lost; ``casts`` are the lines of forward passes that cast to a format."""
        losses = (_loss(seen, place, casts.get(seen.dtype)) for seen in self._found.values())
        return tuple(loss for loss in losses if loss is not None)


def _loss(
    seen: _Seen, place: Callable[[Spot | None], Place | None], cast: Spot | None
) -> GradientLoss | None:
    rows = [(row.tolist(), number, step) for row, number, step in seen.results]
    lost = [each for each in rows if each[0][0]]
    if not lost:
        return None
    worst = max((row for row, _, _ in lost), key=lambda row: row[2])
    return GradientLoss(
        kind=seen.kind,
        op=seen.op,
        format=format_of(seen.dtype).name,
        cast=place(cast),
        backward=seen.backward,
        place=place(seen.spot),
        function=seen.spot.function if seen.spot is not None else "",
        seen=seen.seen,
        lost=len(lost),
        passes=len({number for _, number, _ in lost}),
        steps=len({step for _, _, step in lost}),
        adds_or_casts=seen.again,
        largest=worst[1],
        share=worst[2],
        projection=worst[3],
    )
