"""The remedy keep-float32, and the run in which no quantizer acts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.remedy import Dose, Remedy

if TYPE_CHECKING:
    from torch import Tensor

    from precdoctor.remedies.quantized_use import QuantizedUse

#: part of the layers that is tried beside the worst one and all of them
_PART = 4


class KeepFloat32(Remedy):
    """Leaves the quantizer out for a few layers: their products get the weight itself.

    Tried for the worst layer, for the worst quarter of those that the finding names, and for all of them.

    ## What it buys

    The precision of the layers that need it for the bits of the few that do, often the first and the last.
    Which ones is a question of measurement: `precdoctor.remedies.sensitivity.sensitivity(loss)` tells by how
    much the loss falls when each layer alone is left unquantized. In a four-bit language model it hardly
    mattered: all in FP4 ended at 0.745, with the head, attention or the feed-forward layers in float32 at
    0.735, 0.716 and 0.755, float32 altogether at 0.696.

    ## Bytes per parameter

    0 in training, where the float32 weight is there anyway; packed, these layers take 4 instead of their
    quantized size.

    ## When not

    Against missing gradients. Layers that are left unquantized get their gradient back as well and seem to
    prove that precision was at fault; what they hide is that the others still have none.

    ## By hand

    ```python
    KEPT = {"head"}  # by measurement
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name not in KEPT:
            torch.nn.utils.parametrize.register_parametrization(module, "weight", FakeQuantize())
    ```

    ## References

    - NVIDIA 2025, Pretraining Large Language Models with NVFP4, arXiv 2509.25149 (selected layers in BF16)
    - Jacob et al. 2018, Quantization and Training of Neural Networks, arXiv 1712.05877
    """

    id: ClassVar[str] = "keep-float32"

    @classmethod
    def doses(cls, settings: Mapping[str, float | str]) -> tuple[Mapping[str, float | str], ...]:
        """Return the worst layer, the worst quarter and all, where "layers" names them, the worst first."""
        names = [name for name in str(settings.get("layers", "")).split(",") if name]
        sizes = sorted({1, -(-len(names) // _PART), len(names)})
        return (
            tuple({**settings, "layers": ",".join(names[:size])} for size in sizes) if names else (settings,)
        )

    @classmethod
    def apply(cls, dose: Dose, run: Intervention) -> None:
        """Give products the weights that "layers" names, else the subjects, as they are."""
        from precdoctor.remedies.following import Chosen, Follower, follow

        run.otherwise = "no product in it gets rounded values of these weights"
        names = [name for name in str(dose.settings.get("layers", "")).split(",") if name]
        chosen = Chosen(run, names or dose.subjects)

        def instead(use: QuantizedUse) -> Tensor | None:
            if not use.is_rounded or use.parameter not in chosen:
                return None
            run.acted = True
            return use.weight()

        follow(run, Follower(instead))


def bypass(run: Intervention) -> None:
    """Let no quantizer act in a run: products get the weights themselves, and so does what rounds data.

    Weights are not overwritten by their rounded values. What gives up more than the nearest step of a grid
    (floor, sign) stays, and hands its gradient on.
    """
    import torch

    from precdoctor.remedies.following import Follower, follow
    from precdoctor.remedies.quantized_use import straight_through

    def on_round(func: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return (
            x.clone() if func in (torch.round, torch.Tensor.round) else straight_through(x, rounded.detach())
        )

    follower = Follower(
        lambda use: use.weight() if use.is_rounded else None,
        on_round=on_round,
        on_overwrite=lambda _: True,
    )
    follow(run, follower, is_optional=True)
