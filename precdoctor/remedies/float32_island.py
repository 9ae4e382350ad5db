"""The remedy float32-island."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, ClassVar

from precdoctor.remedies.intervention import Intervention, is_low, modules_around, to_float32
from precdoctor.remedies.remedy import DoesNotApply, Dose, Remedy

if TYPE_CHECKING:
    import torch
    from torch import nn


class Float32Island(Remedy):
    """Keeps a few modules, such as the norms, in float32 and the rest of the model in the low format.

    Their weights, gradients and state are float32 and they compute in float32; inputs are widened on the
    way in and results rounded on the way out, so their neighbours notice nothing.

    ## What it buys

    All of what float32 weights buy for the parameters that suffer most, for next to no memory: norms hold
    well under 1 % of a transformer's weights. In a language model norms in bfloat16 alone cost 0.316 of
    loss (448 of 448 stayed exactly 1.0), the matrices in bfloat16 alone 0.016.

    ## Bytes per parameter

    8 more with Adam, for the parameters of these modules only: 2 for the weight, 2 for its gradient, 4
    for the two moments.

    ## When not

    Where the matrices suffer as well: at lr 3e-5 bfloat16 matrices of standard deviation 0.02 lose 77 %
    of their descent too. Where fused kernels expect one format for activations and norm weights. The
    module's activations are float32 for the time being.

    ## By hand

    ```python
    class Float32RMSNorm(torch.nn.RMSNorm):
        def forward(self, x):
            return super().forward(x.float()).to(x.dtype)


    model = model.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, Float32RMSNorm):
            module.float()  # before the optimizer is made
    ```

    ## References

    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740 (norms in float32)
    - PyTorch documentation, autocast op reference (ops that autocast to float32)
    """

    id: ClassVar[str] = "float32-island"
    widened: ClassVar[int] = 4  # weight, gradient, two moments

    @classmethod
    def apply(cls, _: Dose, run: Intervention) -> None:
        """Widen the modules of the subjects when their optimizer is made."""
        run.otherwise = "no module holds these parameters in a format below float32"
        handles: list[Any] = []

        def on_optimizer(optimizer: torch.optim.Optimizer) -> None:
            low = [p for p in run.chosen(optimizer) if is_low(p.dtype)]
            wanted = {id(p) for p in low}
            for module in modules_around(low):
                own = [p for p in module._parameters.values() if p is not None]
                if not any(id(p) in wanted for p in own):
                    continue
                if any(is_low(p.dtype) for child in module.children() for p in child.parameters()):
                    raise DoesNotApply(f"{type(module).__qualname__} holds modules in the low format")
                for tensor in (*own, *module._buffers.values()):
                    if tensor is not None and is_low(tensor.dtype):
                        to_float32(tensor)
                handles.append(module.register_forward_pre_hook(_enter, with_kwargs=True))
                handles.append(module.register_forward_hook(_leave, always_call=True))
                run.acted = True

        def remove() -> None:
            for handle in handles:
                handle.remove()

        run.on_optimizer(on_optimizer)
        run.at_exit(remove)


class _Open(threading.local):
    """The islands whose forward runs in this thread: the format that came in, and autocast switched off."""

    def __init__(self) -> None:
        self.stack: list[tuple[torch.dtype | None, contextlib.AbstractContextManager[Any]]] = []


_open = _Open()


# functions of the module, not closures: a copied or pickled model carries its hooks along


def _enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
    import torch

    came: list[torch.dtype] = []
    args, kwargs = _map(args, is_low, torch.float32, came), _map(kwargs, is_low, torch.float32, came)
    device = next(p for p in module._parameters.values() if p is not None).device.type
    region: contextlib.AbstractContextManager[Any] = torch.autocast(device, enabled=False)
    region.__enter__()
    _open.stack.append((came[0] if came else None, region))
    return args, kwargs


def _leave(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    import torch

    came, region = _open.stack.pop()
    region.__exit__(None, None, None)
    if came is None or output is None:
        return None
    return _map(output, lambda dtype: dtype == torch.float32, came, [])


def _map(value: Any, wanted: Any, to: torch.dtype, met: list[torch.dtype]) -> Any:
    """Return a value whose tensors in a wanted format have another one, in tuples, lists and dicts too."""
    from torch import Tensor

    if isinstance(value, Tensor):
        if not wanted(value.dtype):
            return value
        met.append(value.dtype)
        return value.to(to)
    if type(value) in (tuple, list):
        return type(value)(_map(item, wanted, to, met) for item in value)
    if type(value) is dict:
        return {key: _map(item, wanted, to, met) for key, item in value.items()}
    return value
