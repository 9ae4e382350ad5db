"""The remedy plain-optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.remedy import Dose, Remedy

if TYPE_CHECKING:
    import torch

_IMPLEMENTATIONS = ("fused", "foreach")


class PlainOptimizer(Remedy):
    """Runs the optimizer's plain loop instead of its fused or foreach implementation.

    ## What it buys

    Independence from faults of a kernel. In torch 2.13 on a CPU `SGD(fused=True)` with bfloat16 or
    float16 weights skips every full SIMD block: 0 of 4,096 elements move, and nothing is reported. The
    loop writes what it computes.

    ## Bytes per parameter

    0.

    ## When not

    Where the fast implementation is right, which is nearly always: the loop is slower, and rounds several
    times per step in the weight's format where a fused Adam rounds once. It cures no loss to rounding.

    ## By hand

    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=False, foreach=False)
    ```

    ## References

    - PyTorch documentation, torch.optim (fused and foreach implementations)
    """

    id: ClassVar[str] = "plain-optimizer"

    @classmethod
    def apply(cls, _: Dose, run: Intervention) -> None:
        """Switch every group before the first step, and before a scaler asks what the optimizer can do."""
        import torch

        run.otherwise = "no optimizer has another implementation switched on"

        def switch(optimizer: torch.optim.Optimizer) -> None:
            for group in optimizer.param_groups:
                on = [name for name in _IMPLEMENTATIONS if group.get(name)]
                group.update({name: False for name in _IMPLEMENTATIONS if name in group})
                run.acted = run.acted or bool(on)
            if getattr(optimizer, "_step_supports_amp_scaling", False) and run.acted:
                optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]

        def around_step(original: Any) -> Any:
            def wrapper(scaler: Any, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
                switch(optimizer)
                return original(scaler, optimizer, *args, **kwargs)

            return wrapper

        run.patches.wrap(torch.amp.GradScaler, "step", around_step)
        run.at_first_step(switch)
