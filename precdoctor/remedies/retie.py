"""The remedy re-tie."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from precdoctor.remedies.intervention import Intervention, modules_around
from precdoctor.remedies.remedy import Dose, Remedy

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Retie(Remedy):
    """Makes two weights one parameter again that were tied once.

    When the optimizer is made, and again before its first step, the module of the second weight gets the
    parameter of the first; the optimizer steps that alone.

    ## What it buys

    The model that was meant: one weight that learns from both of its uses, and its memory, gradient and
    optimizer state once. In a four-bit language model an untied head cost 18.9 million parameters, 64 % of
    the model.

    ## Bytes per parameter

    0. All that belonged to the second weight is saved: 16 per parameter with Adam in float32.

    ## When not

    Before a missing gradient is cured. Tied to a head that gets none, the embedding fits the frozen head
    instead of learning: 7.9 % accuracy where it was 38.5 % untied. Nor where the two were untied on purpose;
    with enough data two weights can do better than one.

    ## By hand

    ```python
    model.head = QuantizedLinear(model.head)
    model.head.weight = model.embedding.weight  # after the last change of the model
    optimizer = torch.optim.AdamW(model.parameters())
    ```

    ## References

    - Press and Wolf 2017, Using the Output Embedding to Improve Language Models, arXiv 1608.05859
    """

    id: ClassVar[str] = "re-tie"

    @classmethod
    def apply(cls, dose: Dose, run: Intervention) -> None:
        """Tie the subjects of the same shape to the first of them."""
        from precdoctor.observe.models import Models

        run.otherwise = "no two of these weights are parameters of the same shape"

        def tie(optimizer: torch.optim.Optimizer) -> None:
            models = Models()
            models.refresh()
            named = {owner.name: parameter for parameter, owner in models.parameters()}
            first: dict[torch.Size, Tensor] = {}
            for parameter in (named[name] for name in dose.subjects if name in named):
                kept = first.setdefault(parameter.shape, parameter)
                if kept is not parameter:
                    _replace(parameter, kept, optimizer)
                    run.acted = True

        run.on_optimizer(tie)
        run.at_first_step(tie)


def _replace(parameter: Tensor, kept: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Put one parameter in the place of another, in modules and in an optimizer; gradients add up."""
    for module in modules_around([parameter]):
        for name, own in module._parameters.items():
            if own is parameter:
                module._parameters[name] = kept  # type: ignore[assignment]
    if parameter.grad is not None:
        kept.grad = parameter.grad if kept.grad is None else kept.grad + parameter.grad
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        others = [kept] if all(p is not kept for p in stepped) else []
        group["params"][:] = [q for p in group["params"] for q in (others if p is parameter else [p])]
    optimizer.state.pop(parameter, None)
