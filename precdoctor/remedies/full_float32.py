"""The run of comparison: whatever the program asks for in 16 bits is given in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from precdoctor.remedies.casts import FormatFound, widen
from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.keep_float32 import bypass
from precdoctor.remedies.remedy import Dose, Remedy

if TYPE_CHECKING:
    import torch


class FullFloat32(Remedy):
    """Runs the whole program in float32: the yardstick for every cure.

    Casts to float16 and bfloat16 give float32, factory functions that are asked for a 16-bit tensor give
    a float32 one, autocast regions are off and the default dtype is never below float32. Random numbers
    are drawn in the format that was asked for and widened, so that both runs start from the same weights.
    For findings on quantizers no quantizer acts either: products get the weights themselves.

    ## What it buys

    Nothing that you would want to keep: it is what the other runs are compared with.

    ## Bytes per parameter

    8 more than with 16-bit weights and Adam: 2 for the weight, 2 for its gradient, 4 for the two moments.

    ## When not

    Tensors that are reinterpreted (`view(dtype)`, `torch.frombuffer`) stay as they are, and float8
    formats too.

    ## By hand

    Leave out every cast and every autocast region.
    """

    id: ClassVar[str] = "float32"
    widened: ClassVar[int] = 4  # weight, gradient, two moments

    @classmethod
    def apply(cls, dose: Dose, run: Intervention) -> None:
        """Arrange that nothing is computed in 16 bits, nor, with the setting "quantizers", on a grid."""
        import torch

        from precdoctor.remedies.float32_mode import Float32Mode

        run.acted = True  # a float32 program is its own comparison
        mode, found = Float32Mode(), FormatFound()
        mode.__enter__()  # type: ignore[no-untyped-call]
        run.at_exit(mode.leave)
        run.patches.wrap(torch, "set_default_dtype", mode.around_set_default_dtype)
        run.patches.wrap(torch.amp.autocast_mode.autocast, "__init__", _never_enabled)
        if dose.settings.get("quantizers") == "bypassed":
            bypass(run)
        # loaded from a file, say: what no cast was seen of
        run.on_optimizer(lambda optimizer: widen(optimizer, found, whole_model=True))


def _never_enabled(original: Any) -> Any:
    def wrapper(region: torch.autocast, *args: Any, **kwargs: Any) -> None:
        original(region, *args, **kwargs)
        region._enabled = False

    return wrapper
