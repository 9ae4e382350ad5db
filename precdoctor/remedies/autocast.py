"""The remedy autocast."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from precdoctor.remedies.casts import skip_module_casts, widen
from precdoctor.remedies.intervention import Intervention, is_low
from precdoctor.remedies.loss_scaling import scale_losses
from precdoctor.remedies.remedy import Dose, Remedy

if TYPE_CHECKING:
    import torch
    from torch import nn


class Autocast(Remedy):
    """Keeps the weights in float32 and computes the forward in the low format under `torch.autocast`.

    The cast of the model is left out, so weights, gradients and optimizer state are float32. Inside the
    region matrix products run in the low format, from copies of the weights that are made for the pass.

    ## What it buys

    Every update arrives: float32 has 16 more significand bits than bfloat16. On a small net with a norm
    at 1.0 and lr 3e-4 no element of 64 is left behind and 0.1 % of the updates round away, where bfloat16
    weights lose 100 % (mean 1.0015 after 200 steps, as in float32 altogether). It is the standard way,
    and needs no other optimizer. The fast matrix units still see 16 bits.

    ## Bytes per parameter

    8 more with Adam: 2 for the weight, 2 for its gradient, 4 for the two moments (8 -> 16). The low
    copies that autocast makes live as long as the region: up to 2 more at the peak.

    ## When not

    On top of a model that stays cast to bfloat16: autocast keeps no master, and the weights freeze
    exactly as without it. Where 16 bytes per parameter do not fit, take stochastic rounding or Kahan
    summation. In float16 gradients below 6e-8 vanish, so it needs loss scaling (this trial adds it). On a
    CPU autocast does not widen softmax, norms and sums as it does on CUDA.

    ## By hand

    ```python
    model = Model().to(device)  # no dtype here
    for batch in data:
        with torch.autocast(device_type=device, dtype=torch.bfloat16):
            loss = model(batch)
        loss.backward()  # outside the region
        optimizer.step()
    ```

    ## References

    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740
    - PyTorch documentation, Automatic Mixed Precision package (torch.amp)
    """

    id: ClassVar[str] = "autocast"
    widened: ClassVar[int] = 4  # weight, gradient, two moments

    @classmethod
    def apply(cls, _: Dose, run: Intervention) -> None:
        """Skip the casts, widen what is low all the same, run the models under autocast."""
        import torch
        from torch import nn

        run.otherwise = "no model in it has weights below float32"
        found = skip_module_casts(run)
        treated: set[int] = set()

        def on_optimizer(optimizer: torch.optim.Optimizer) -> None:
            widen(optimizer, found)
            treated.update(id(p) for group in optimizer.param_groups for p in group["params"])

        run.on_optimizer(on_optimizer)
        regions = _Regions(treated)

        def around_call(original: Any) -> Any:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                device = None if found.dtype is None else regions.device(args[0])
                if device is None:
                    return original(*args, **kwargs)
                run.acted = True
                with regions, torch.autocast(device, dtype=found.dtype):
                    output = original(*args, **kwargs)
                return widened(output)

            return wrapper

        run.patches.wrap(nn.Module, "__call__", around_call)
        scale_losses(run, lambda: found.dtype == torch.float16)


class _Regions(threading.local):
    """Which calls of a module open a region: the outermost ones of modules with treated parameters."""

    def __init__(self, treated: set[int]) -> None:
        self._treated = treated
        self._is_open = False
        self._known: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()

    def device(self, module: nn.Module) -> str | None:
        """Return the device type for a region around this call; None where none is opened."""
        if self._is_open:
            return None
        known = self._known.get(module)
        if known is None:
            known = next((p.device.type for p in module.parameters() if id(p) in self._treated), None)
            if known is not None:
                self._known[module] = known
        return known

    def __enter__(self) -> None:
        self._is_open = True

    def __exit__(self, *_: object) -> None:
        self._is_open = False


def widened(output: Any) -> Any:
    """Return what a model returned with its 16-bit tensors, in nested containers too, as float32."""
    from torch import Tensor

    if isinstance(output, Tensor):
        return output.float() if is_low(output.dtype) else output
    if isinstance(output, dict):
        for key, value in output.items():
            if (wide := widened(value)) is not value:
                output[key] = wide
        return output
    if type(output) in (list, tuple):
        return type(output)(map(widened, output))
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*map(widened, output))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            value = getattr(output, field.name, None)
            if (wide := widened(value)) is not value:
                object.__setattr__(output, field.name, wide)
    return output
