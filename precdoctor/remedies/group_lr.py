"""The remedy group-lr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.remedy import Dose, Remedy, usual_besides

if TYPE_CHECKING:
    import torch

#: the usual advice, tried beside the solved factor
_USUAL = 10.0


class GroupLr(Remedy):
    """Steps the affected parameters with a learning rate that is larger by a factor.

    They get a parameter group of their own; a schedule goes on as it is, times the factor. The factor is
    the smallest one from which the expected effective descent quality stays within 0.1 of 1, solved from
    the updates that were seen.

    ## What it buys

    Updates above half an ulp, so that they are stored. It needs no memory and no change of the model.

    ## Bytes per parameter

    0.

    ## When not

    As a rule. It is another run: the steps are as large as the *format* needs, not as the loss does, and
    a schedule that decays takes them below half an ulp again. Measured on a bfloat16 norm at 1.0: lr
    1e-3, often advised, moves nothing; 3e-3 loses 98.8 % of the updates and, since a decrease passes at
    half the size of an increase there, makes 28 steps up against 129 down and ends at a mean of 0.9938
    where float32 ends at 1.0138; 5e-3 still loses 94.6 %.

    ## By hand

    ```python
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    others = [p for name, p in model.named_parameters() if "norm" not in name]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": norms, "lr": 10 * lr}], lr=lr)
    ```

    ## References

    - Yu et al. 2024, Collage, arXiv 2405.03637 (effective descent quality)
    - Higham 2002, Accuracy and Stability of Numerical Algorithms, section 2.1 (wobbling precision)
    """

    id: ClassVar[str] = "group-lr"

    @classmethod
    def doses(cls, settings: Mapping[str, float | str]) -> tuple[Mapping[str, float | str], ...]:
        """Return the solved factor and, as the usual advice, 10."""
        return usual_besides(settings, "factor", _USUAL)

    @classmethod
    def apply(cls, dose: Dose, run: Intervention) -> None:
        """Put the subjects into groups of their own during each step."""
        factor = dose.number("factor", _USUAL)
        run.otherwise = "no optimizer with a learning rate steps these parameters"
        chosen: dict[int, set[int]] = {}
        undo: dict[int, list[Callable[[], None]]] = {}

        def choose(optimizer: torch.optim.Optimizer) -> None:
            chosen[id(optimizer)] = {id(p) for p in run.chosen(optimizer)}

        def raise_rates(optimizer: torch.optim.Optimizer) -> None:
            key, groups = id(optimizer.param_groups), optimizer.param_groups
            if key in undo:  # the optimizer around this one has the same groups
                return
            back = [_split(groups, group, chosen[id(optimizer)], factor) for group in list(groups)]
            undo[key] = [act for act in back if act is not None]
            run.acted = run.acted or bool(undo[key])

        def put_back(optimizer: torch.optim.Optimizer) -> None:
            for act in reversed(undo.pop(id(optimizer.param_groups), [])):
                act()

        run.at_first_step(choose)
        run.before_step(raise_rates)
        run.after_step(put_back)


def _split(
    groups: list[dict[str, Any]], group: dict[str, Any], chosen: set[int], factor: float
) -> Callable[[], None] | None:
    """Give the chosen parameters of a group a larger rate; return what undoes it, None without any."""
    everyone, lr = group["params"], group.get("lr")
    mine = [p for p in everyone if id(p) in chosen]
    if not mine or lr is None:
        return None
    if len(mine) == len(everyone):
        group["lr"] = lr * factor

        def undo() -> None:
            group["lr"] = lr

        return undo
    # a copy made anew each step, so that counters kept in a group stay those of the group
    own = {**group, "params": mine, "lr": lr * factor}
    group["params"] = [p for p in everyone if id(p) not in chosen]
    groups.append(own)

    def join() -> None:
        group["params"] = everyone
        groups[:] = [g for g in groups if g is not own]

    return join
