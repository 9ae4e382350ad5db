"""How large gradients are, unit by unit: all together, each parameter, and each of its rows.

Clipping by the user's own code shows in what it leaves: wherever it has an effect, the size of the unit that
it clips is its threshold, or a fixed share of the norm of the unit's weights, whatever the size was before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from precdoctor.observe.watch import is_plain

#: rows of a parameter that are measured
_ROWS = 4096
#: times that a unit must have shrunk, by which share at least, and how equal it is then (relative)
_SHRUNK, _SHRINKS, _EQUAL = 4, 0.01, 1e-3
#: how much more it varied before: a constant factor leaves all that there was
_VARIED = 10
#: share of the units that shrank which have a constant size: fewer may be chance
_SHARE = 0.5

Sizes = dict[str, Tensor]


class Constant(NamedTuple):
    """A size that gradients have whenever they were made smaller."""

    #: (scale, size, size before), each time
    samples: tuple[tuple[float, float, float], ...]
    #: what is constant is the size over the norm of the weights: that; None for the size itself
    of_weights: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """Gradients before and after the user's own code, at one step."""

    scale: float
    #: identities of the parameters: samples of others can't be compared
    parameters: tuple[int, ...]
    before: Sizes
    after: Sizes
    weights: Sizes


def sizes(tensor: Tensor) -> Sizes | None:
    """Return norm, largest magnitude and norms of rows; nothing is read back from the device."""
    if not is_plain(tensor) or not tensor.is_floating_point() or not tensor.numel():
        return None
    wide = tensor.detach().float()
    rows = wide.flatten(1)[:_ROWS] if wide.ndim > 1 else wide.reshape(1, -1)
    return {
        "norm": torch.linalg.vector_norm(wide).reshape(1),
        "largest": wide.abs().max().reshape(1),
        "row": torch.linalg.vector_norm(rows, dim=1),
    }


def together(parts: Sequence[Sizes]) -> Sizes:
    """Return the sizes of several tensors as one, with the norm of all, on the CPU in float64."""
    found = {key: torch.cat([p[key].cpu().double() for p in parts]) for key in ("norm", "largest", "row")}
    return {"all": found["norm"].norm().reshape(1), **found}


def constant(samples: Sequence[Sample]) -> Constant | None:
    """Return the constant size of the widest units that have one, None where there is none."""
    sorts: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        sorts.setdefault(sample.parameters, []).append(sample)
    found = (_widest(alike) for alike in sorts.values() if len(alike) >= _SHRUNK)
    return next((each for each in found if each is not None), None)


def _widest(samples: Sequence[Sample]) -> Constant | None:
    for level in ("all", "norm", "largest", "row"):
        before, after, weights = (
            torch.stack([sizes[level] for sizes in each])
            for each in zip(*((s.before, s.after, s.weights) for s in samples), strict=True)
        )
        found = _constant([s.scale for s in samples], before, after, weights)
        if found is not None:
            return found
    return None


def _constant(scales: list[float], before: Tensor, after: Tensor, weights: Tensor) -> Constant | None:
    """Return the constant size of units (columns) over the steps (rows)."""
    shrunk = (after > 0) & (after < (1 - _SHRINKS) * before) & torch.isfinite(before)
    often = shrunk.sum(0) >= _SHRUNK
    varied = _spread(before, shrunk) > _VARIED * _EQUAL
    for of_weights, size in ((False, after), (True, after / weights)):
        equal = often & varied & (_spread(size, shrunk) <= _EQUAL)
        if equal.sum() < max(_SHARE * float(often.sum()), 1):
            continue
        # of all units the one that lost most
        unit = int(torch.where(equal & shrunk, before / after, 0.0).amax(0).argmax())
        steps = shrunk[:, unit].nonzero().flatten().tolist()
        return Constant(
            tuple((scales[i], float(after[i, unit]), float(before[i, unit])) for i in steps),
            float(size[steps[-1], unit]) if of_weights else None,
        )
    return None


def _spread(sizes: Tensor, where: Tensor) -> Tensor:
    """Return, by column, how far the elements of a mask lie apart, relative to the largest; inf for none."""
    largest = torch.where(where, sizes, -math.inf).amax(0)
    smallest = torch.where(where, sizes, math.inf).amin(0)
    return torch.where(largest > 0, (largest - smallest) / largest, math.inf)
