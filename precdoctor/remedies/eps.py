"""The remedy eps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.remedy import Dose, Remedy

if TYPE_CHECKING:
    import torch


class Eps(Remedy):
    """Gives the optimizer an eps that is not 0 in the format it is added in.

    ## What it buys

    No division by zero: 1e-8, Adam's default, is 0 in float16, whose smallest positive number is 6.0e-8;
    so is the square of every gradient below 2.4e-4. An eps of 1e-4 is a normal float16 number.

    ## Bytes per parameter

    0.

    ## When not

    Where the weights can be float32: eps can then stay small. A large eps damps the steps of all elements
    whose gradients are below it, so Adam turns into SGD there.

    ## By hand

    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, eps=1e-4)
    ```

    ## References

    - pytorch/pytorch issue 8860; keras-team/keras issue 11860
    - Kingma and Ba 2015, Adam, arXiv 1412.6980
    """

    id: ClassVar[str] = "eps"

    @classmethod
    def apply(cls, dose: Dose, run: Intervention) -> None:
        """Set it in the groups of the subjects before the first step."""
        eps = dose.number("eps", 1e-4)
        run.otherwise = "the optimizer of these parameters has no eps"

        def change(optimizer: torch.optim.Optimizer) -> None:
            for group in run.groups(optimizer):
                if "eps" in group:
                    group["eps"] = eps
                    run.acted = True

        run.at_first_step(change)
