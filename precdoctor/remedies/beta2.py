"""The remedy beta2."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.remedy import Dose, Remedy

if TYPE_CHECKING:
    import torch


class Beta2(Remedy):
    """Gives Adam a beta2 at which a low-format second moment can fall.

    ## What it buys

    A second moment that follows the gradients down. In bfloat16 it is multiplied by 0.999, 0.1 % less,
    and half an ulp is 0.2 to 0.4 % of it: the product rounds back, and the average stays 1.0 through
    1,000 steps without any gradient. 0.99 takes away 1 %, which arrives.

    ## Bytes per parameter

    0.

    ## When not

    Where the state can be float32 (4 bytes per parameter): beta2 then stays what it was tuned to. 0.99
    averages over 100 steps instead of 1,000, so steps become noisier.

    ## By hand

    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.99))
    ```

    ## References

    - Kingma and Ba 2015, Adam, arXiv 1412.6980
    - Nerogar/OneTrainer issue 1005
    """

    id: ClassVar[str] = "beta2"

    @classmethod
    def apply(cls, dose: Dose, run: Intervention) -> None:
        """Set it in the groups of the subjects before the first step."""
        beta2 = dose.number("beta2", 0.99)
        run.otherwise = "the optimizer of these parameters has no beta2"

        def change(optimizer: torch.optim.Optimizer) -> None:
            for group in run.groups(optimizer):
                betas = group.get("betas")
                if isinstance(betas, (tuple, list)) and len(betas) >= 2:
                    group["betas"] = (betas[0], beta2, *betas[2:])
                    run.acted = True

        run.at_first_step(change)
