"""Casts of a model to a 16-bit format, found as they happen and undone where none was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precdoctor.remedies.intervention import Intervention, is_low, low_parameters, modules_around, to_float32

if TYPE_CHECKING:
    import torch


class FormatFound:
    """The 16-bit format that the program wanted for its weights."""

    def __init__(self) -> None:
        #: None as long as none was met
        self.dtype: torch.dtype | None = None

    def note(self, dtype: torch.dtype) -> None:
        """Remember the first one."""
        if self.dtype is None:
            self.dtype = dtype


def skip_module_casts(run: Intervention) -> FormatFound:
    """Let modules keep their format where the program casts them to 16 bits; moves to a device pass."""
    import torch
    from torch import nn

    found = FormatFound()

    def around_to(original: Any) -> Any:
        def wrapper(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            asked: tuple[Any, ...] = torch._C._nn._parse_to(*args, **kwargs)
            device, dtype, non_blocking, layout = asked
            if dtype is None or not is_low(dtype):
                return original(module, *args, **kwargs)
            found.note(dtype)
            rest: dict[str, Any] = {"non_blocking": non_blocking}
            if device is not None:
                rest["device"] = device
            if layout is not None:
                rest["memory_format"] = layout
            return original(module, **rest) if len(rest) > 1 else module

        return wrapper

    def around_type(original: Any) -> Any:
        def wrapper(module: nn.Module, dst_type: Any) -> Any:
            if not isinstance(dst_type, torch.dtype) or not is_low(dst_type):
                return original(module, dst_type)
            found.note(dst_type)
            return module

        return wrapper

    def skipping(dtype: torch.dtype) -> Any:
        def around(_: Any) -> Any:
            def wrapper(module: nn.Module) -> nn.Module:
                found.note(dtype)
                return module

            return wrapper

        return around

    run.patches.wrap(nn.Module, "to", around_to)
    run.patches.wrap(nn.Module, "type", around_type)
    run.patches.wrap(nn.Module, "half", skipping(torch.float16))
    run.patches.wrap(nn.Module, "bfloat16", skipping(torch.bfloat16))
    return found


def widen(optimizer: torch.optim.Optimizer, found: FormatFound, *, whole_model: bool = False) -> None:
    """Give float32 to the parameters of an optimizer, and to the buffers of the modules around them.

    ``whole_model`` includes the parameters that no optimizer steps.
    """
    low = low_parameters(optimizer)
    if not low and not whole_model:
        return
    for parameter in low:
        found.note(parameter.dtype)
        to_float32(parameter)
    tensors = low or [p for group in optimizer.param_groups for p in group["params"]]
    for module in modules_around(tensors):
        others = [*module._buffers.values(), *(module._parameters.values() if whole_model else ())]
        for tensor in others:
            if tensor is not None and is_low(tensor.dtype):
                found.note(tensor.dtype)
                to_float32(tensor)
