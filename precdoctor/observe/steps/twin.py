"""The shadow of a user's optimizer: the same class and hyper-parameters on float64 copies.

Nothing of the user's optimizer is shared that a step could write to: hyper-parameter tensors, counters
and generators are copied, or the replay is refused with a reason (`CannotReplay`).
"""

from __future__ import annotations

import collections
import contextlib
import copy
import enum
import functools
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from precdoctor.observe.steps.purity import holds_run, impurity

#: largest tensor among an optimizer's own attributes that is copied along (elements)
_MAX_ATTRIBUTE = 1 << 22
_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)
#: implementations of the same algorithm; the shadow runs the plain loop, the library's reference
_IMPLEMENTATION = ("foreach", "fused", "differentiable")


class CannotReplay(Exception):
    """This optimizer can't be stepped on copies; the text says why."""


def undecorated_step(optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    """Return the class's step without torch's hook wrapper: global hooks must not see the shadow."""
    step: Any = type(optimizer).step
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[no-any-return]


def twin(
    optimizer: torch.optim.Optimizer,
    group: int,
    parameters: Sequence[Tensor],
    states: Sequence[Mapping[str, Any]],
    overrides: Mapping[str, Any] | None = None,
    *,
    same_implementation: bool = False,
) -> torch.optim.Optimizer:
    """Return a copy of ``optimizer`` that holds only ``parameters``, in one group like group ``group``.

    ``parameters`` carry their gradients; ``states`` are taken over as they are (pass copies).
    ``overrides`` replace hyper-parameters. With ``same_implementation`` a fused or foreach step stays
    one. Raises `CannotReplay`.
    """
    why = impurity(type(optimizer))
    if why:
        raise CannotReplay(why)
    shadow: torch.optim.Optimizer = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        if name in _HOOKS:
            vars(shadow)[name] = collections.OrderedDict()
        elif name in ("grad_scale", "found_inf"):
            vars(shadow)[name] = None
        elif name not in ("state", "param_groups", "step", "zero_grad"):
            mine = isinstance(value, types.MethodType) and value.__self__ is optimizer
            vars(shadow)[name] = types.MethodType(value.__func__, shadow) if mine else _copied(value, name)
    settings = {k: _copied(v, k) for k, v in optimizer.param_groups[group].items() if k != "params"}
    if not same_implementation:
        settings.update({k: False for k in _IMPLEMENTATION if k in settings})
    settings.update(overrides or {})
    shadow.param_groups = [{"params": list(parameters), **settings}]
    shadow.state = collections.defaultdict(dict)
    for parameter, state in zip(parameters, states, strict=True):
        if state:
            shadow.state[parameter] = dict(state)
    return shadow


def step(shadow: torch.optim.Optimizer) -> None:
    """Step a shadow once, outside torch's hooks. Raises `CannotReplay` with the optimizer's own error."""
    try:
        with torch.no_grad(), muted():
            undecorated_step(shadow)(shadow)
    except Exception as error:
        raise CannotReplay(f"{type(error).__name__}: {error}") from None


def is_sparse(gradient: Tensor | None) -> bool:
    """Tell whether a gradient holds some rows only, which optimizers may step alone."""
    return type(gradient) is Tensor and gradient.layout == torch.sparse_coo


def setting(value: Any) -> float | None:
    """Return a hyper-parameter as a number; None for what is none, or whose reading waits for a device."""
    if isinstance(value, Tensor):
        return float(value.detach()) if value.device.type == "cpu" and value.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) else None


def copied_state(value: Any) -> Any:
    """Return a copy of one entry of an optimizer's state that a step may write to."""
    return _copied(value, "state")


def _copied(value: Any, name: str, depth: int = 0) -> Any:
    if value is None or isinstance(
        value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device, enum.Enum, type)
    ):
        return value
    if isinstance(value, Tensor):
        if value.numel() > _MAX_ATTRIBUTE:
            raise CannotReplay(f"its attribute {name!r} is a tensor of {value.numel()} elements")
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return copy.deepcopy(value)
    if isinstance(
        value, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
    ):
        if holds_run(value):
            raise CannotReplay(f"its attribute {name!r} is a function that holds parts of the run")
        return value
    if isinstance(value, types.ModuleType):
        return value
    if depth < 4 and isinstance(value, dict):
        if any(isinstance(key, Tensor) for key in value):
            raise CannotReplay(f"it keeps state by tensor in {name!r}, outside .state")
        pairs = {key: _copied(item, name, depth + 1) for key, item in value.items()}
        if isinstance(value, collections.defaultdict):
            return collections.defaultdict(value.default_factory, pairs)
        return pairs
    if depth < 4 and type(value) in (list, tuple, set, frozenset):
        return type(value)(_copied(item, name, depth + 1) for item in value)
    if isinstance(value, (nn.Module, torch.optim.Optimizer)):
        raise CannotReplay(f"its attribute {name!r} is a {type(value).__name__}")
    try:
        return copy.deepcopy(value)
    except Exception:
        raise CannotReplay(f"its attribute {name!r} ({type(value).__name__}) can't be copied") from None


@contextlib.contextmanager
def undisturbed_rng() -> Iterator[None]:
    """Restore every random number generator of the process afterwards."""
    numpy = sys.modules.get("numpy")
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    numpy_state = numpy.random.get_state() if numpy else None
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
        if numpy and numpy_state is not None:
            numpy.random.set_state(numpy_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


class _Muted:
    """A stream that swallows what one thread writes, for a while."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread, self.active = stream, threading.get_ident(), True

    def write(self, text: str) -> int:
        if self.active and threading.get_ident() == self._thread:
            return len(text)
        return int(self._stream.write(text) or 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Swallow what code of the user's prints when it is run on copies."""
    out, err = sys.stdout, sys.stderr
    quiet = _Muted(out), _Muted(err)
    sys.stdout, sys.stderr = quiet
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err
        for stream in quiet:
            stream.active = False
