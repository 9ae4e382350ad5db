"""Follows the weights of a run to the products that use them, and gives those something else from outside.

Two modes of torch. The upper one sees each call that the program makes, above autograd: there a product can
still be given an argument with another history. The lower one sees the operations that come of it and keeps
the lineage of what is made from parameters. Both lie above a Doctor's probe, which sees what is computed.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from precdoctor.observe.frames import UserCode
from precdoctor.observe.lineage.gradients import GradientLineage
from precdoctor.observe.lineage.kinds import is_float8
from precdoctor.observe.lineage.lineage import Lineage
from precdoctor.observe.lineage.made import CannotRemake, Made, Root, remade
from precdoctor.observe.probe.operations import Operation
from precdoctor.observe.watch import is_plain
from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.quantized_use import QuantizedUse, use_of
from precdoctor.remedies.remedy import DoesNotApply

_PRODUCTS_TEXT = """
matmul mm bmm mv addmm addbmm baddbmm addmv dot vdot inner einsum tensordot
conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
"""
_LAYERS_TEXT = """
linear bilinear embedding embedding_bag multi_head_attention_forward rms_norm layer_norm group_norm batch_norm
"""
_PRODUCTS_OF = ((torch, _PRODUCTS_TEXT), (Tensor, _PRODUCTS_TEXT), (F, _PRODUCTS_TEXT + _LAYERS_TEXT))
#: calls that bring a weight and data together
_PRODUCTS = frozenset(
    (
        *(
            getattr(owner, name)
            for owner, text in _PRODUCTS_OF
            for name in text.split()
            if hasattr(owner, name)
        ),
        Tensor.__matmul__,
        Tensor.__rmatmul__,
    )
)
#: these do so where a weight is spread over data
_SPREADING = frozenset((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__))
_ROUNDINGS = frozenset(
    getattr(owner, name)
    for owner in (torch, Tensor)
    for name in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")
)
#: round to the nearest integer; those that write over what they round
_NEAREST, _NEAREST_IN_PLACE = (torch.round, Tensor.round), (torch.round_, Tensor.round_)
_CASTS = (Tensor.to, Tensor.type)
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
#: write one tensor into another
_WRITES = frozenset((Tensor.copy_, _SET_DATA))
#: elements over which the codes of a weight are counted
_SAMPLE = 1 << 14


class Follower:
    """Follows the parameters of a run. A context manager, for `follow`.

    ``instead(use)`` returns what a product gets, None: what the program gives to it. ``on_round(func, x,
    rounded)`` returns what a rounding of data gives, for which a gradient is wanted; ``on_gradient(gradient,
    rounded)`` what that of a gradient gives, to the nearest integer or by a cast to 8 bits, in a function
    of the backward pass. ``on_overwrite(use)`` tells whether to leave out that coarser values of a weight
    are written into it. ``keeps_codes``: see `QuantizedUse.levels`.
    """

    def __init__(
        self,
        instead: Callable[[QuantizedUse], Tensor | None],
        *,
        on_round: Callable[[Any, Tensor, Tensor], Tensor] | None = None,
        on_gradient: Callable[[Tensor, Tensor], Tensor] | None = None,
        on_overwrite: Callable[[QuantizedUse], bool] | None = None,
        keeps_codes: bool = False,
    ) -> None:
        self._instead, self._on_round, self._on_overwrite = instead, on_round, on_overwrite
        self._on_gradient = on_gradient
        self._gradients = GradientLineage(UserCode()) if on_gradient is not None else None
        #: steps that optimizers have made
        self.steps = 0
        #: weights that do not get the gradient of what is used
        self.severed: set[Root] = set()
        #: whether a custom function on its way back gives a weight nothing
        self.blocked: dict[Root, bool] = {}
        #: whether a weight is quantized after a transposition
        self.turned: dict[Root, bool] = {}
        self._calls = self._stepping = 0
        self._process = os.getpid()
        self._remade: dict[int, tuple[Made, Tensor]] = {}
        self._modes: tuple[_Calls | _Operations, ...] = ()
        self._lineage = Lineage(
            UserCode(),
            on_use=lambda _: None,
            on_rounding=_keep_codes if keeps_codes else lambda *_: None,
            on_rewrite=lambda *_: None,
        )

    def __enter__(self) -> Follower:
        self._modes = (_Calls(self), _Operations(self))
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the modes; under one that the program has left open ours stay, idle."""
        modes, self._modes = self._modes, ()
        depth = torch._C._len_torch_dispatch_stack()
        innermost = (
            torch.overrides._get_current_function_mode(),  # type: ignore[no-untyped-call]
            torch._C._get_dispatch_stack_at(depth - 1) if depth else None,
        )
        for mode, top in zip(modes, innermost, strict=False):
            if mode is top:
                mode.__exit__(None, None, None)

    # ------------------------------------------------------------------ for uses

    def known(self, tensor: Any) -> Made | Root | None:
        """Return what a tensor of floating-point numbers is; None where no parameter is in it."""
        if isinstance(tensor, Tensor) and is_plain(tensor) and tensor.is_floating_point():
            return self._lineage.made(tensor)
        return None

    def remade(self, made: Made, device: torch.device) -> Tensor:
        """Return what a made tensor is now, made again once after each step."""
        known = self._remade.get(id(made))
        if known is None:
            devices = [device] if device.type == "cuda" else []
            plain = torch.autocast(device.type, enabled=False)  # what was recorded lies below it
            calls, self._calls = self._calls, 0  # no need to follow ourselves
            try:
                with torch.random.fork_rng(devices=devices), plain, torch.no_grad():
                    known = self._remade[id(made)] = (made, remade(made))
            except (CannotRemake, RuntimeError) as error:
                raise DoesNotApply(f"a weight can't be quantized again from outside: {error}") from None
            finally:
                self._calls = calls
        return known[1]

    # ------------------------------------------------------------------ told by the run

    def step_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Look away from what the optimizer does."""
        self._stepping += 1
        self._lineage.step_begins(optimizer, self.steps)
        if self._gradients is not None:
            self._gradients.step_begins(optimizer, self.steps)

    def step_ended(self, _: torch.optim.Optimizer) -> None:
        """Count a step: what was made before it is old."""
        self._stepping = max(self._stepping - 1, 0)
        self.steps += 1
        self._remade.clear()

    @property
    def is_looking(self) -> bool:
        """Tell whether calls are looked at; a forked worker of a data loader inherits the modes."""
        return bool(self._modes) and not self._stepping and os.getpid() == self._process

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call of the program, with other arguments or another result where that is wanted."""
        self._calls += 1
        try:
            if func in _PRODUCTS:
                args = self._exchanged(args)
                kwargs = {name: self._exchanged(value) for name, value in kwargs.items()}
            elif func in _SPREADING and len(args) == 2:
                args = self._spread(*args)
            elif func in _WRITES and self._left_out(*args[:2]):
                return args[0]
            elif self._rounds_gradient(func, args):
                return self._gradient_rounded(func, args, kwargs)
            result = func(*args, **kwargs)
            if func in _ROUNDINGS and self._on_round is not None and self._wants_gradient(args, result):
                return self._on_round(func, args[0], result)
            return result
        finally:
            self._calls -= 1

    def around_engine(self, original: Any) -> Any:
        """Go on seeing calls inside a backward pass, such as those of custom functions and checkpoints."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self._modes or self._modes[0] in torch.overrides._get_current_function_mode_stack():  # type: ignore[no-untyped-call]
                return original(*args, **kwargs)
            calls, self._calls = self._calls, 0
            try:
                with self._modes[0]:
                    return original(*args, **kwargs)
            finally:
                self._calls = calls

        return wrapper

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: Any) -> Any:
        """Run an operation; follow it where it belongs to a call, and not to autograd's own backward."""
        if not self._calls:
            return func(*args, **kwargs)
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            with torch.no_grad():
                self._lineage.before(func, args, kwargs)
        out, graded = func(*args, **kwargs), torch.is_grad_enabled()
        self._lineage.after(
            Operation(func, args, kwargs, out, step=self.steps, backward=False, graded=graded, frame=frame)
        )
        if self._gradients is not None and _is_backward():
            self._gradients.after(
                Operation(func, args, kwargs, out, step=self.steps, backward=True, graded=graded, frame=frame)
            )
        return out

    # ------------------------------------------------------------------ what is exchanged

    def _exchanged(self, value: Any) -> Any:
        """Return what a product gets instead of an argument; in sequences too, as einsum has them."""
        if isinstance(value, Tensor):
            use = use_of(self, value)
            other = self._instead(use) if use is not None else None
            return value if other is None else other
        if type(value) in (list, tuple) and any(isinstance(v, (Tensor, list, tuple)) for v in value):
            return type(value)(self._exchanged(v) for v in value)
        return value

    def _spread(self, first: Any, second: Any) -> tuple[Any, Any]:
        """Return the operands of a multiplication; a weight that is spread over data is used there."""
        if self._is_spread(first, second):
            return self._exchanged(first), second
        if self._is_spread(second, first):
            return first, self._exchanged(second)
        return first, second

    def _is_spread(self, weight: Any, data: Any) -> bool:
        if not (isinstance(weight, Tensor) and isinstance(data, Tensor) and is_plain(data)):
            return False
        return data.is_floating_point() and data.numel() > weight.numel() and self.known(data) is None

    def _left_out(self, target: Any, source: Any) -> bool:
        if self._on_overwrite is None:
            return False
        use, root = use_of(self, source), self.known(target)
        if use is None or not use.is_coarse or use.root is not root:
            return False
        if not tuple(target.shape) == tuple(source.shape) == use.root.shape:
            return False
        return self._on_overwrite(use)

    def _rounds_gradient(self, func: Any, args: tuple[Any, ...]) -> bool:
        gradients = self._gradients
        if gradients is None or func not in (*_NEAREST, *_NEAREST_IN_PLACE, *_CASTS) or not _is_backward():
            return False
        return isinstance(args[0], Tensor) and gradients.is_gradient(args[0], sys._getframe(1))

    def _gradient_rounded(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Round a gradient as `on_gradient` does, where it is rounded to integers or to 8 bits."""
        assert self._on_gradient is not None
        source, in_place = args[0], func in _NEAREST_IN_PLACE
        gradient = source.clone() if in_place else source
        result = func(*args, **kwargs)
        rounds = is_float8(result) if func in _CASTS else len(args) + len(kwargs) == 1  # without decimals
        if not rounds:
            return result
        other = self._on_gradient(gradient, result)
        return source.copy_(other) if in_place else other

    def _wants_gradient(self, args: tuple[Any, ...], result: Any) -> bool:
        is_data = bool(args) and isinstance(args[0], Tensor) and self.known(args[0]) is None
        return is_data and args[0].requires_grad and isinstance(result, Tensor) and result.requires_grad


def follow(run: Intervention, follower: Follower, *, is_optional: bool = False) -> None:
    """Let a follower act on a run from the moment a Doctor has attached.

    What a compiled model computes can't be exchanged: `DoesNotApply` is raised in a program that compiles
    one, unless ``is_optional``.
    """

    def around_compile(original: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not is_optional:
                raise DoesNotApply("what a compiled model computes can't be exchanged from outside")
            follower.__exit__()
            return original(*args, **kwargs)

        return wrapper

    run.is_slow = True
    run.patches.wrap(torch, "compile", around_compile)
    run.patches.wrap(torch.autograd, "_engine_run_backward", follower.around_engine)
    run.inside(follower)
    run.before_step(follower.step_begins)
    run.after_step(follower.step_ended)


class Chosen:
    """The parameters of some names, known once their optimizer is made; without names, all."""

    def __init__(self, run: Intervention, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._found: dict[int, weakref.ref[Tensor]] = {}
        if names:
            run.on_optimizer(lambda optimizer: self._note(run.named(optimizer)))

    def __contains__(self, parameter: Tensor) -> bool:
        known = self._found.get(id(parameter))
        return not self._names or (known is not None and known() is parameter)

    def _note(self, named: Mapping[str, Tensor]) -> None:
        self._found |= {id(p): weakref.ref(p) for name, p in named.items() if name in self._names}


class _Calls(TorchFunctionMode):
    def __init__(self, follower: Follower) -> None:
        super().__init__()
        self._follower = follower

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._follower.is_looking:
            return func(*args, **kwargs)
        return self._follower.call(func, args, kwargs)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, follower: Follower) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._follower = follower

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else all of dynamo is imported at the first operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._follower.is_looking:
            return func(*args, **(kwargs or {}))
        return self._follower.operation(func, args, kwargs or {}, sys._getframe(1))


def _is_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _keep_codes(made: Made, tensor: Tensor) -> None:
    numel = max((root.numel for root in made.roots), default=0)
    if numel // 2 <= tensor.numel() <= 2 * numel:
        codes = tensor.detach().reshape(-1)[:_SAMPLE]
        made.codes = (codes.view(torch.uint8) if codes.element_size() == 1 else codes).clone()
