"""Float32 optimizer state and arithmetic for weights that stay in a low format."""

from __future__ import annotations

from torch import Tensor

from precdoctor.remedies.wrappers.float32_step import Float32Step


class Float32State(Float32Step):
    """Step low-format weights in float32, with float32 state, and round the result ties_to_even.

    ``optimizer = Float32State(torch.optim.AdamW(model.parameters()))``

    What it buys: second moments that can fall (with beta2 0.999 bfloat16 ones can't), step sizes and eps that
    do not round away, one rounding per step instead of several. Updates below half an ulp of the weight are
    lost as before: for those see `StochasticRounding`, `KahanSummation` and `MasterWeights`.

    Cost in bytes per parameter, Adam: 12 (weight 2, gradient 2, state 8) instead of 8; the wrapper itself
    keeps nothing. During a step 8 more for float32 copies of weights and gradients.
    """

    def store(self, parameter: Tensor, value: Tensor) -> None:
        """Round to nearest, ties_to_even."""
        parameter.copy_(value)
