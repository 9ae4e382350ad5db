"""Kahan summation around any optimizer: what rounding the weight loses is added in the next step."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from precdoctor.numerics import format_of
from precdoctor.remedies.wrappers.float32_step import Float32Step


class KahanSummation(Float32Step):
    """Keep what rounding loses of each low-format weight, in the weight's own format, and add it again.

    ``optimizer = KahanSummation(torch.optim.AdamW(model.parameters()))``

    What it buys: small updates add up until they move the weight; weight and compensation together hold
    about 16 significant bits in bfloat16 and 22 in float16. Deterministic. Updates more than 8 (11) bits
    below half an ulp are lost nevertheless. The compensation is kept multiplied by 2**precision, so that it
    underflows no earlier than the weight itself. An element whose compensation exceeds the weight's ulp has
    been written to by somebody else (a mask, a checkpoint) and starts without one.

    Cost in bytes per parameter, Adam: 14 (weight 2, gradient 2, state 8, compensation 2) instead of 8. During
    a step 8 more for float32 copies of weights and gradients.

    Sources: Kahan 1965, "Further remarks on reducing truncation errors", Comm. ACM 8(1); for weights:
    Zamirai et al. 2020, "Revisiting bfloat16 training", arXiv 2010.06192, section 4.
    """

    keeps: ClassVar[str] = "compensations"

    def load(self, parameter: Tensor) -> Tensor:
        """Return weight plus compensation."""
        kept = self._kept.get(parameter)
        value = parameter.float()
        if kept is None:
            return value
        # half an ulp times 2**precision is the power of two at or below the weight, or the smallest normal
        own = kept.abs() <= parameter.abs().clamp_min_(torch.finfo(parameter.dtype).tiny)
        compensation = kept.where(own, 0.0).float()
        return value.add_(compensation, alpha=2.0 ** -format_of(parameter.dtype).precision)

    def store(self, parameter: Tensor, value: Tensor) -> None:
        """Round to nearest, ties_to_even, and keep the rest."""
        parameter.copy_(value)
        rest = (value - parameter.float()).nan_to_num_(0.0, 0.0, 0.0)  # nothing where it is not finite
        scaled = rest.mul_(2.0 ** format_of(parameter.dtype).precision)
        kept = self._kept.get(parameter)
        if kept is None:
            kept = self._kept[parameter] = torch.empty_like(parameter, requires_grad=False)
        kept.copy_(scaled)
