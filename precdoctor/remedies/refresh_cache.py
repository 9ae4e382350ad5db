"""The remedy refresh-cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.remedy import Dose, Remedy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from precdoctor.remedies.quantized_use import QuantizedUse


class RefreshCache(Remedy):
    """Quantizes, or casts, a weight again once it has changed, instead of using an old copy of it.

    Values that were rounded or cast to 16 bits before the last optimizer step are made again, by the same
    operations from the weight as it is now; the gradient goes the way it went. Where the autocast region
    spans the step, autocast's own casts are dropped after each.

    ## What it buys

    A forward pass that follows its weights. With a cache whose key never changed a four-bit language model
    stayed at loss 4.93 while its weights moved by 8 times their norm; quantized afresh it reached 0.35.

    ## Bytes per parameter

    0.

    ## When not

    Where the copy is old on purpose: a target or reference network, delayed scaling with a fixed schedule.
    Quantizing in every forward pass costs time; a cache is fine as long as it is dropped after each step.

    ## By hand

    ```python
    def drop_caches(*_):
        for layer in model.modules():
            if hasattr(layer, "_quantized"):
                layer._quantized = None


    optimizer.register_step_post_hook(drop_caches)  # or quantize in every forward pass
    ```

    `weight._version` is no safe key: a fused optimizer step does not advance it, nor does a write through
    `.data`. Open `torch.autocast` for each forward pass, or with `cache_enabled=False`.

    ## References

    - PyTorch documentation, torch.amp.autocast (cache_enabled); torch.clear_autocast_cache
    """

    id: ClassVar[str] = "refresh-cache"

    @classmethod
    def apply(cls, _: Dose, run: Intervention) -> None:
        """Give products fresh values instead of old ones; drop autocast's casts after a step."""
        import torch

        from precdoctor.remedies.following import Follower, follow
        from precdoctor.remedies.quantized_use import straight_through

        run.otherwise = "no copy of a weight in it is older than the last optimizer step"

        def instead(use: QuantizedUse) -> Tensor | None:
            if not use.is_stale:
                return None
            run.acted = True
            return straight_through(use.tensor, use.fresh())

        def drop(optimizer: torch.optim.Optimizer) -> None:
            devices = {p.device.type for group in optimizer.param_groups for p in group["params"]}
            if torch.is_autocast_cache_enabled() and any(map(torch.is_autocast_enabled, devices)):
                run.acted = True
                torch.clear_autocast_cache()

        follow(run, Follower(instead))
        run.after_step(drop)
