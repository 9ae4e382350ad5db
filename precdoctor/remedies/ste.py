"""The remedy ste."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.remedy import Dose, Remedy

if TYPE_CHECKING:
    from torch import Tensor

    from precdoctor.remedies.quantized_use import QuantizedUse


class StraightThrough(Remedy):
    """Passes the gradient of the quantized values on to the weight: a straight-through estimator.

    The forward pass computes with the same quantized values as before, `w + (Q(w) - w).detach()`, whose
    derivative with respect to w is one. Weights that were cut off from their gradient (by `.data`,
    `.detach()`, `no_grad`, or a rounding whose derivative is zero) get that of what was used, and are
    quantized again when they have moved. Roundings of activations hand their gradient on in the same way.

    ## What it buys

    Weights that train at all. In a language model whose 4-bit layers had no gradient the loss stayed at 4.32
    (float32: 0.32), at any learning rate and just so without any quantization; with this estimator the same
    4 bits reached 0.35, INT8 and FP8 0.32, INT2 1.12.

    ## Bytes per parameter

    12 more with Adam, for the weights that were cut off and held nothing but themselves: gradient and two
    moments, as for every weight that trains.

    ## When not

    Where weights are frozen on purpose, as below adapters. Where the scale clips much of the weight, the
    gradient of what is clipped is passed on too, and the weight runs away from what is seen of it: mend the
    scale first. Functions that are meant to be flat (a mask, an index, the fractional part of a number) need
    no gradient. Masks by comparison (`x > 0`) and casts of activations to integers are beyond this trial,
    and so are custom autograd functions, whose backward is the program's own.

    ## By hand

    ```python
    def used_weight(self):
        w = self.weight  # the parameter itself: no .data, no .detach()
        return w + (dequantize(*quantize(w.detach())) - w).detach()
    ```

    ## References

    - Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons, arXiv 1308.3432
    - Jacob et al. 2018, Quantization and Training of Neural Networks, arXiv 1712.05877
    """

    id: ClassVar[str] = "ste"
    awakened: ClassVar[int] = 3  # gradient, two moments

    @classmethod
    def apply(cls, _: Dose, run: Intervention) -> None:
        """Give products a straight-through form of rounded weights that get no gradient."""
        from precdoctor.remedies.following import Follower, follow
        from precdoctor.remedies.quantized_use import straight_through

        run.otherwise = "nothing in it is rounded without a way back for the gradient"

        def instead(use: QuantizedUse) -> Tensor | None:
            if not use.is_rounded or not use.is_severed:
                return None
            run.acted = True
            value = use.fresh() if use.is_stale else use.tensor
            return straight_through(use.weight(), value.detach() if use.is_of_one else value)

        def on_round(_: Any, x: Tensor, rounded: Tensor) -> Tensor:
            run.acted = True
            return straight_through(x, rounded.detach())

        follow(run, Follower(instead, on_round=on_round))
