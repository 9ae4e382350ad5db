"""The remedy float32-state."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.remedy import Dose, Remedy


class Float32StateRemedy(Remedy):
    """Keeps the optimizer's state, and does its arithmetic, in float32 beside low-format weights.

    The weights are widened for the step and rounded to nearest after it. torch's own optimizers make
    their state in the format of the weight they see, so it is float32 from the first step on.

    ## What it buys

    A second moment that can fall: in bfloat16 with beta2 = 0.999 it rises and never falls again (0.1 %
    per step against half an ulp of 0.2 to 0.4 %), so an early burst of gradients makes every later step
    too small. It also keeps eps = 1e-8, which is 0 in float16, and step counters beyond 256.

    ## Bytes per parameter

    4 more with Adam: 2 for each of its two moments (8 -> 12).

    ## When not

    Against frozen weights: the update is still rounded to nearest in the weight's format, and lost as
    before.

    ## By hand

    ```python
    from precdoctor.remedies import Float32State

    optimizer = Float32State(torch.optim.AdamW(model.parameters(), lr=3e-4))
    ```

    ## References

    - Kingma and Ba 2015, Adam, arXiv 1412.6980
    - Nerogar/OneTrainer issue 1005; pytorch/torchdistx issue 52
    """

    id: ClassVar[str] = "float32-state"
    widened: ClassVar[int] = 2  # two moments

    @classmethod
    def apply(cls, _: Dose, run: Intervention) -> None:
        """Wrap every optimizer."""
        from precdoctor.remedies import Float32State

        run.wrap_optimizers(Float32State)
