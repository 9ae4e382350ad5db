"""How much each quantized weight costs: the loss with all of them quantized, less that without this one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from precdoctor.observe.lineage.made import Root
from precdoctor.observe.models import Models
from precdoctor.remedies.following import Follower
from precdoctor.remedies.quantized_use import QuantizedUse


def sensitivity(loss: Callable[[], Tensor | float]) -> dict[str, float]:
    """Return by how much the loss falls when each quantized weight alone is left unquantized, most first.

    ``loss()`` evaluates the model as it stands, always on the same data; it is called once per weight and
    twice more, with the same random numbers and without gradients. Weights by their qualified names, in
    units of the loss; negative where quantization helps. What was quantized before the call, and is kept in
    a cache, is not seen.
    """
    seen: dict[Root, Tensor] = {}
    left_out: Root | None = None

    def instead(use: QuantizedUse) -> Tensor | None:
        if not use.is_rounded:
            return None
        seen[use.root] = use.parameter
        return use.weight() if use.root is left_out else None

    def evaluated() -> float:
        with torch.random.fork_rng(), torch.no_grad():
            return float(loss())

    costs: dict[str, float] = {}
    with Follower(instead):
        evaluated()
        models = Models()
        models.refresh()
        quantized = evaluated()
        for index, (root, parameter) in enumerate(seen.copy().items()):
            left_out, owner = root, models.owner(parameter)
            costs[owner.name if owner is not None else f"parameter {index}"] = quantized - evaluated()
    return dict(sorted(costs.items(), key=lambda item: -item[1]))
