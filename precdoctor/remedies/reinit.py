"""The remedy reinit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.remedy import Dose, Remedy, usual_besides

if TYPE_CHECKING:
    import torch

#: the usual advice, tried beside the solved factor
_USUAL = 0.1


class Reinit(Remedy):
    """Starts the affected weights smaller by a factor, so that half an ulp of them is smaller too.

    ## What it buys

    Half an ulp is a share of the weight (1/512 to 1/256 in bfloat16): a weight ten times smaller takes
    updates that are some ten times smaller. It costs nothing.

    ## Bytes per parameter

    0.

    ## When not

    As a rule. It is another model: norms at 0.1 hand a tenth of the signal on, and what used to be
    learned from 1.0 is learned from there. Nor is it enough: a bfloat16 norm that starts at 0.1 instead
    of 1.0 with lr 3e-4 thaws (2 % of the elements never move, where it was 100 %) and still loses 99.0 %
    of the updates, with 46 steps up against 85 down; at lr 1e-4 none moves. And weights that grow get
    into the same trouble again. Never on a model that was trained before.

    ## By hand

    ```python
    for name, p in model.named_parameters():
        if "norm" in name:
            torch.nn.init.constant_(p, 0.1)
    ```

    ## References

    - Zamirai et al. 2020, Revisiting BFloat16 Training, arXiv 2010.06192 (update against weight)
    """

    id: ClassVar[str] = "reinit"

    @classmethod
    def doses(cls, settings: Mapping[str, float | str]) -> tuple[Mapping[str, float | str], ...]:
        """Return the solved factor and, as the usual advice, 0.1."""
        return usual_besides(settings, "factor", _USUAL)

    @classmethod
    def apply(cls, dose: Dose, run: Intervention) -> None:
        """Shrink the subjects before the first step: after whatever the program loads or initialises."""
        factor = dose.number("factor", _USUAL)
        run.otherwise = "no optimizer steps these parameters"
        done: set[int] = set()

        def shrink(optimizer: torch.optim.Optimizer) -> None:
            for parameter in run.chosen(optimizer):
                if id(parameter) not in done:
                    done.add(id(parameter))
                    run.acted = True
                    parameter.data.mul_(factor)

        run.at_first_step(shrink)
