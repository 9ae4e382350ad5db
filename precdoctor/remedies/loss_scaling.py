"""The remedy loss-scaling."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from precdoctor.remedies.intervention import Intervention, is_low
from precdoctor.remedies.remedy import DoesNotApply, Dose, Remedy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: the scale to begin with, as torch.amp.GradScaler has it
_SCALE = 2.0**16


class LossScaling(Remedy):
    """Multiplies the loss before the backward pass and divides the gradients after it.

    The scale is a power of two, so nothing is rounded by it; it is halved, and the step left out,
    whenever a gradient overflows.

    ## What it buys

    In float16 what is below 6e-8 is 0 and what is below 6e-5 loses bits. Activation gradients of a mean
    over many tokens are often there, and the weights behind them get no gradient at all. Scaled by 65,536
    they lie 16 binades higher, where float16 has room.

    ## Bytes per parameter

    0.

    ## When not

    In bfloat16, which has float32's range: nothing underflows there that matters, and a scale changes
    nothing. Beside float16 *weights* it helps on the way only: the gradient is divided in float16 again
    before it is used, and the update still has to survive the weight's format. Take float32 weights under
    autocast there, and let the scaler stand beside them.

    ## By hand

    ```python
    scaler = torch.amp.GradScaler(device)
    with torch.autocast(device_type=device, dtype=torch.float16):
        loss = model(batch)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)  # before clipping
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    ```

    ## References

    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740, section 3.2
    - PyTorch documentation, torch.amp.GradScaler
    """

    id: ClassVar[str] = "loss-scaling"

    @classmethod
    def apply(cls, dose: Dose, run: Intervention) -> None:
        """Scale every loss. Raises `DoesNotApply` in the run where the program does so itself."""
        import torch

        run.otherwise = "it has no backward pass to optimizer parameters"

        def around_scale(original: Any) -> Any:
            def wrapper(scaler: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> Any:
                if scaler.is_enabled():
                    raise DoesNotApply("the program scales its loss itself (GradScaler)")
                return original(scaler, *args, **kwargs)

            return wrapper

        run.patches.wrap(torch.amp.GradScaler, "scale", around_scale)
        scaling = scale_losses(run, lambda: True, dose.number("scale", _SCALE))

        def note(_: torch.optim.Optimizer) -> None:
            run.acted = run.acted or scaling.used

        run.before_step(note)


def scale_losses(run: Intervention, is_on: Callable[[], bool], scale: float = _SCALE) -> Scaling:
    """Arrange that losses are scaled, and gradients divided, wherever ``is_on()``."""
    import torch

    scaling = Scaling(scale, is_on)
    run.patches.wrap(torch.autograd, "backward", scaling.around_backward)
    run.patches.wrap(torch.amp.GradScaler, "scale", scaling.around_scaler)
    run.on_optimizer(scaling.hook)
    run.before_step(scaling.hook)
    run.before_step(scaling.leave_out_overflow)
    run.at_exit(scaling.remove)
    return scaling


class Scaling:
    """The state of dynamic loss scaling in one run."""

    def __init__(self, scale: float, is_on: Callable[[], bool]) -> None:
        #: a gradient was divided
        self.used = False
        self._scale, self._is_on = scale, is_on
        #: the program has an enabled scaler of its own
        self._is_theirs = False
        #: a backward pass of a scaled loss is running
        self._in_backward = False
        #: the scale of that pass
        self._divisor = scale
        self._hooked: dict[int, weakref.ref[Tensor]] = {}
        self._handles: list[Any] = []

    def around_backward(self, original: Any) -> Any:
        """Scale what a backward pass starts from; one inside another (checkpointing) is scaled already."""

        def wrapper(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
            if self._in_backward or self._is_theirs or not self._is_on():
                return original(tensors, grad_tensors, *args, **kwargs)
            losses = _listed(tensors)
            given = [None] * len(losses) if grad_tensors is None else _listed(grad_tensors)
            if len(given) != len(losses):
                return original(losses, given, *args, **kwargs)  # the error is torch's to raise
            # a loss in float16 can't be multiplied by 65,536
            self._divisor = min(self._scale, 2.0**15) if any(is_low(t.dtype) for t in losses) else self._scale
            seeds = [self._seed(t, g) for t, g in zip(losses, given, strict=True)]
            self._in_backward = True
            try:
                return original(losses, seeds, *args, **kwargs)
            finally:
                self._in_backward = False

        return wrapper

    def around_scaler(self, original: Any) -> Any:
        """Stand back where the program has a scaler."""

        def wrapper(scaler: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> Any:
            self._is_theirs = self._is_theirs or scaler.is_enabled()
            return original(scaler, *args, **kwargs)

        return wrapper

    def hook(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients of an optimizer's parameters on their way into ``.grad``."""
        for group in optimizer.param_groups:
            for p in group["params"]:
                known = self._hooked.get(id(p))
                if p.requires_grad and p.is_leaf and (known is None or known() is not p):
                    self._hooked[id(p)] = weakref.ref(p)
                    self._handles.append(p.register_hook(self._divide))

    def leave_out_overflow(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradients away, and halve the scale, where one is not finite."""
        if not self.used or self._scale <= 1:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if all(bool(p.grad.isfinite().all()) for p in parameters):
            return
        self._scale /= 2
        for p in parameters:
            p.grad = None

    def remove(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()

    def _seed(self, tensor: Tensor, gradient: Tensor | None) -> Tensor | None:
        import torch

        if gradient is not None:
            return gradient * self._divisor
        if tensor.numel() != 1:
            return None  # the error is torch's to raise
        return torch.full_like(tensor, self._divisor)

    def _divide(self, gradient: Tensor) -> Tensor:
        if not self._in_backward:
            return gradient
        self.used = True
        return gradient / self._divisor


def _listed(tensors: Any) -> list[Any]:
    from torch import Tensor

    return [tensors] if isinstance(tensors, Tensor) else list(tensors)
