"""Float32 master weights around any optimizer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from precdoctor.remedies.wrappers.float32_step import Float32Step


class MasterWeights(Float32Step):
    """Keep a float32 master of each low-format weight; the weight is its copy, rounded ties_to_even.

    ``optimizer = MasterWeights(torch.optim.AdamW(model.parameters()))``

    What it buys: training as with float32 weights, up to the gradients' own precision; no update is lost.
    An element of a weight that somebody else has written to (a checkpoint, a clamp, a mask) takes its new
    value along into the master at the next step.

    Cost in bytes per parameter, Adam: 16 (weight 2, gradient 2, state 8, master 4) instead of 8, as much as
    float32 weights under autocast. During a step 4 more for float32 gradients. `KahanSummation` (14) and
    `StochasticRounding` (12) are cheaper. After a step that raised, masters it had changed start again from
    the weights.

    Source: Micikevicius et al. 2018, "Mixed precision training", arXiv 1710.03740, section 3.1.
    """

    keeps: ClassVar[str] = "masters"

    def load(self, parameter: Tensor) -> Tensor:
        """Return the master, made from the weight at first and wherever the weight is not its copy."""
        master = self._kept.get(parameter)
        if master is None:
            master = self._kept[parameter] = parameter.float()
        else:
            foreign = master.to(parameter.dtype) != parameter
            master.copy_(torch.where(foreign, parameter.float(), master))
        return master

    def store(self, parameter: Tensor, value: Tensor) -> None:
        """Round to nearest, ties_to_even; keep the value."""
        parameter.copy_(value)
        self._kept[parameter] = value

    def forget(self, parameter: Tensor) -> None:
        """Drop the master."""
        self._kept.pop(parameter, None)
