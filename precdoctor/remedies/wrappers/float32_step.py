"""The step that all wrappers share: the optimizer steps float32 tensors that stand in for the weights."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from precdoctor.remedies.wrappers.exchange import exchange, family, parameters

_LOW = (torch.bfloat16, torch.float16)
_KEY = "precdoctor"

Wrapper = TypeVar("Wrapper", bound="Float32Step")


@dataclass(slots=True, kw_only=True)
class _Loan:
    """A weight, and what stands in for it during a step."""

    parameter: Tensor
    stand_in: nn.Parameter
    #: version of the stand-in before the step
    version: int
    #: version of its gradient before the step
    gradient_version: int = 0


class Float32Step(Optimizer):
    """Base of the wrappers: low-format weights are stepped in float32 and stored by the subclass's rule.

    For the time of a step the optimizer holds, instead of each bfloat16 or float16 weight and its gradient,
    float32 tensors: whatever it computes is computed in float32, and its state is made and kept in float32.
    Then the results are stored in the weights, in place. Parameters of other formats are stepped as ever.
    The wrapper acts through step hooks of ``optimizer``: it works whichever of the two is stepped, and
    groups, state and hyper-parameters are those of ``optimizer``, for schedulers too.

    Checkpoints of the optimizer alone and of the wrapped one can be loaded by either. Raises TypeError for
    what is not a torch optimizer, ValueError for one that is wrapped already.
    """

    #: what is kept of each weight between steps; empty: nothing
    keeps: ClassVar[str] = ""
    #: what steps the stand-ins, and owns groups and state
    optimizer: Optimizer
    # told to torch.amp.GradScaler: gradients are unscaled here, in float32
    _step_supports_amp_scaling = True

    def __init__(self, optimizer: Optimizer) -> None:
        # not Optimizer.__init__: this object has no groups, no state and no hooks of its own
        self._adopt(optimizer)
        self._register()

    def _adopt(self, optimizer: Optimizer) -> None:
        name = type(self).__name__
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{name} goes around a torch.optim.Optimizer, not a {type(optimizer).__name__}")
        hooks = getattr(optimizer, "_optimizer_step_pre_hooks", None)
        if not isinstance(optimizer, Float32Step) and hooks is None:
            raise TypeError(
                f"{type(optimizer).__name__} has no step hooks of its own: wrap the optimizer inside it"
            )
        owners = [getattr(hook, "__self__", None) for hook in (hooks or {}).values()]
        other = next((o for o in (optimizer, *owners) if isinstance(o, Float32Step)), None)
        if other is not None:
            raise ValueError(f"{type(other.optimizer).__name__} is wrapped in {type(other).__name__} already")
        self.optimizer = optimizer
        self._kept: dict[Tensor, Tensor] = {}
        self._family: list[Optimizer] = []
        self._loans: list[_Loan] = []
        #: weights before the first evaluation of a closure
        self._saved: list[Tensor] = []
        #: the call of torch's hook wrapper that is stepping
        self._frame: FrameType | None = None
        #: the optimizer holds the stand-ins
        self._lent = False
        #: number of weights whose state is known to be float32
        self._widened = 0
        self._handles: list[RemovableHandle] = []

    def _register(self) -> None:
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
            self.optimizer.register_load_state_dict_post_hook(self._after_load),
        ]
        self._move_inside()

    def _move_inside(self) -> None:
        """Let hooks of others run around ours: they see the weights, not what stands in for them."""
        before, after, _ = self._handles
        self.optimizer._optimizer_step_pre_hooks.move_to_end(before.id)  # type: ignore[attr-defined]
        self.optimizer._optimizer_step_post_hooks.move_to_end(after.id, last=False)  # type: ignore[attr-defined]

    # ------------------------------------------------------------------ the rules of subclasses

    def load(self, parameter: Tensor) -> Tensor:
        """Return the float32 value that a weight stands for; a new tensor, or one that is kept."""
        return parameter.float()

    def store(self, parameter: Tensor, value: Tensor) -> None:
        """Write a float32 value to its weight, in place, and keep what is to be kept."""
        raise NotImplementedError

    def forget(self, parameter: Tensor) -> None:
        """Withdraw the value that `load` returned: a step that raised may have changed it."""

    def held_bytes(self) -> int:
        """Return how many bytes are kept between steps beyond the optimizer's own."""
        return sum(kept.numel() * kept.element_size() for kept in self._kept.values())

    # ------------------------------------------------------------------ the step

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Step the optimizer. A step that raises leaves the weights as they were.

        Under a GradScaler gradients are unscaled here in float32, and a step with infinite ones is skipped.
        """
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return None
        try:
            return self.optimizer.step(*args, **kwargs)
        except BaseException:
            self._give_up()
            raise

    def before(self) -> None:
        """Put float32 tensors in the place of the weights."""
        with _apart():
            self._family = family(self.optimizer)
            inverse = self._inverse_scale()
            for parameter in parameters(self._family):
                gradient = parameter.grad
                if parameter.dtype not in _LOW:
                    if inverse is not None and gradient is not None:
                        gradient.mul_(inverse.to(gradient.device))
                elif parameter.requires_grad or gradient is not None:
                    stand_in = _stand_in(parameter, self.load(parameter))
                    self._loans.append(
                        _Loan(parameter=parameter, stand_in=stand_in, version=stand_in._version)
                    )
            self._lend(inverse)
            if self._widened != len(self._loans):
                self._widen()

    def after(self) -> None:
        """Store what the step has made of them, and put the weights back."""
        with _apart():
            try:
                for loan in self._loans:
                    if loan.stand_in.grad is not None or loan.stand_in._version != loan.version:
                        self.store(loan.parameter, loan.stand_in.detach())
            finally:
                self._return()
                self._loans, self._saved = [], []

    def _inverse_scale(self) -> Tensor | None:
        scale = getattr(self, "grad_scale", None)
        return scale.double().reciprocal().float() if isinstance(scale, Tensor) else None

    def _lend(self, inverse: Tensor | None = None) -> None:
        """Give the stand-ins their gradients and the optimizer the stand-ins."""
        for loan in self._loans:
            gradient = loan.parameter.grad
            if gradient is None:
                loan.stand_in.grad = None
                continue
            wide = gradient.float()
            if inverse is not None:
                wide.mul_(inverse.to(wide.device))
            loan.stand_in.grad, loan.gradient_version = wide, wide._version
        exchange(self._family, {id(loan.parameter): loan.stand_in for loan in self._loans})
        self._lent = True

    def _return(self) -> None:
        """Give the optimizer its weights back, and the weights what it did to their gradients."""
        if not self._lent:
            return
        for loan in self._loans:
            gradient, changed = loan.parameter.grad, loan.stand_in.grad
            if changed is None:
                loan.parameter.grad = None
            elif gradient is not None and changed._version != loan.gradient_version:
                gradient.copy_(changed)  # zeroed inside the step, say
        exchange(self._family, {id(loan.stand_in): loan.parameter for loan in self._loans})
        self._lent = False

    def _give_up(self) -> None:
        """Put everything back after a step that raised."""
        with _apart():
            for loan, saved in zip(self._loans, self._saved, strict=False):
                loan.parameter.copy_(saved)
            for loan in self._loans:
                if loan.stand_in._version != loan.version:
                    self.forget(loan.parameter)
            self._return()
        self._loans, self._saved, self._frame = [], [], None

    def _widen(self) -> None:
        """Turn state from before the wrapping, or made with the optimizer, into float32."""
        for member in self._family:
            for loan in self._loans:
                state = member.state.get(loan.stand_in)
                if state:
                    state.update({name: _widened(value) for name, value in state.items()})
        self._widened = len(self._loans)

    # ------------------------------------------------------------------ hooks

    def _before_step(self, _: Optimizer, args: Any, kwargs: Any) -> Any:
        if self._frame is not None and _is_running(self._frame):
            return None  # a subclass's step that calls its parent's, which is hooked as well
        self._settle()
        self._frame = sys._getframe(1)
        self.before()
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._evaluated(args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._evaluated(kwargs["closure"])}
        return None

    def _after_step(self, *_: Any) -> None:
        if sys._getframe(1) is self._frame:
            self._frame = None
            self.after()

    def _after_load(self, _: Optimizer) -> None:
        self._widened = 0

    def _evaluated(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return a closure that evaluates the model with its own weights, rounded from the stand-ins."""

        def evaluate() -> Any:
            with _apart():
                if not self._saved:
                    self._saved = [loan.parameter.clone() for loan in self._loans]
                for loan in self._loans:
                    loan.parameter.copy_(loan.stand_in)
                self._return()
            try:
                loss = closure()
            except BaseException:
                self._give_up()
                raise
            with _apart():
                self._lend()
            return loss

        return evaluate

    def _settle(self) -> None:
        """Undo what a step has left behind that raised and was not called through the wrapper."""
        if self._loans and not (self._frame is not None and _is_running(self._frame)):
            self._give_up()

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state, and under "precdoctor" what the wrapper keeps, by parameter index."""
        self._settle()
        order = {id(p): index for index, p in reversed(list(enumerate(self._listed())))}
        kept = {order[id(p)]: value for p, value in self._kept.items() if id(p) in order}
        return {**self.optimizer.state_dict(), _KEY: {"keeps": self.keeps, "kept": kept}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this wrapper, of another one or of the optimizer alone; state stays float32.

        What another kind of wrapper kept is left out.
        """
        self._settle()
        own = state_dict.get(_KEY, {})
        kept = own.get("kept", {}) if own.get("keeps") == self.keeps else {}
        listed = self._listed()
        for index, value in kept.items():
            if index >= len(listed) or listed[index].shape != value.shape:
                raise ValueError(f"the {self.keeps} of parameter {index} fits no parameter of this optimizer")
        with _apart():
            # torch casts state to the format of the parameter: let it see float32 ones
            self._family = family(self.optimizer)
            others = {id(p): _stand_in(p, p.float()) for p in parameters(self._family) if p.dtype in _LOW}
            back = {id(others[id(p)]): p for p in parameters(self._family) if id(p) in others}
            exchange(self._family, others)
            try:
                self.optimizer.load_state_dict({k: v for k, v in state_dict.items() if k != _KEY})
            finally:
                exchange(self._family, back)
            self._kept = {
                listed[i]: value.to(listed[i].device, copy=True)
                for i, value in kept.items()
                if listed[i].dtype in _LOW
            }

    def _listed(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a step, and hooks and patches, which are bound to this very object."""
        passing = ("_family", "_loans", "_saved", "_frame", "_lent", "_handles", "_widened", "step")
        return {name: value for name, value in vars(self).items() if name not in passing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._adopt(state["optimizer"])
        vars(self).update(state)
        self._register()

    # ------------------------------------------------------------------ life

    def again(self: Wrapper, optimizer: Optimizer) -> Wrapper:
        """Return one of the same kind for another optimizer, without hooks: call `before` and `after`."""
        other = object.__new__(type(self))
        other._adopt(optimizer)
        return other

    def unwrap(self) -> Optimizer:
        """Take the hooks away and return the optimizer, its state again in the weights' formats."""
        self._settle()
        for handle in self._handles:
            handle.remove()
        self._handles, self._kept = [], {}
        self.optimizer.load_state_dict(self.optimizer.state_dict())
        return self.optimizer

    # ------------------------------------------------------------------ delegated

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's own groups."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """Return the optimizer's own state."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Return the optimizer's own defaults."""
        return self.optimizer.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters."""
        self._settle()
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer."""
        self._settle()
        self.optimizer.add_param_group(param_group)

    def register_step_pre_hook(self, hook: Any) -> RemovableHandle:
        """Register a hook of the optimizer; it sees the weights before the step, in their format."""
        handle = self.optimizer.register_step_pre_hook(hook)
        self._move_inside()
        return handle

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        """Register a hook of the optimizer; it sees the weights after the step, in their format."""
        return self.optimizer.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Register a hook of the optimizer."""
        return self.optimizer.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Register a hook of the optimizer; it sees the optimizer's own state."""
        return self.optimizer.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Register a hook of the optimizer; it sees the optimizer's own state."""
        return self.optimizer.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Register a hook of the optimizer."""
        return self.optimizer.register_load_state_dict_post_hook(hook, prepend)

    def __repr__(self) -> str:
        return f"{type(self).__name__} around {self.optimizer!r}"


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Leave autograd and inference mode: tensors that are kept must be writable later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _stand_in(parameter: Tensor, value: Tensor) -> nn.Parameter:
    stand_in = nn.Parameter(value, requires_grad=parameter.requires_grad)
    vars(stand_in).update(vars(parameter))  # marks by which an optimizer tells kinds of parameters apart
    return stand_in


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _LOW else value
    if type(value) in (list, tuple):
        return type(value)(_widened(item) for item in value)
    return value


def _is_running(frame: FrameType) -> bool:
    current: FrameType | None = sys._getframe(1)
    while current is not None and current is not frame:
        current = current.f_back
    return current is not None
