"""The next update of a parameter, made by torch's own optimizer from the state in a checkpoint.

A checkpoint has no gradient, so one is assumed: the one that leaves the optimizer's memory as it is. Its
class is told from the names of its state and hyper-parameters.
"""

from __future__ import annotations

import collections
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precdoctor.checkpoints.optimizers import Owned

#: takes weights, state and hyper-parameters
Gradient = Callable[[Tensor, Mapping[str, Tensor], Mapping[str, Any]], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An optimizer, how it is recognised, and the gradient that is assumed for it."""

    name: str
    #: what its state must have, and its group
    state: frozenset[str]
    group: frozenset[str] = frozenset()
    #: what its group must not have
    without: frozenset[str] = frozenset()
    gradient: Gradient
    #: what the gradient is, as the end of "the next gradient ..."
    assumed: str


def _first_moment(weight: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]) -> Tensor:
    decay = 0.0 if group.get("decoupled_weight_decay") else _number(group, "weight_decay")
    return state["exp_avg"] - decay * weight


def _momentum(weight: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]) -> Tensor:
    kept = 1 - _number(group, "momentum")
    taken = 1 - _number(group, "dampening")
    memory = state["momentum_buffer"] * (kept / taken if taken else 0.0)
    return memory - _number(group, "weight_decay") * weight


def _root(key: str) -> Gradient:
    def gradient(weight: Tensor, state: Mapping[str, Tensor], _: Mapping[str, Any]) -> Tensor:
        # away from zero, where at a power of two the gap is the larger one
        return -torch.where(weight < 0, -1.0, 1.0) * state[key].sqrt()

    return gradient


def _adagrad(weight: Tensor, state: Mapping[str, Tensor], _: Mapping[str, Any]) -> Tensor:
    steps = max(float(state["step"]), 1.0)
    return -torch.where(weight < 0, -1.0, 1.0) * (state["sum"] / steps).sqrt()


def _previous(_weight: Tensor, state: Mapping[str, Tensor], _: Mapping[str, Any]) -> Tensor:
    return state["prev"]


_EQUALS = "equals the first moment (exp_avg), so that this stays as it is"
_SIZE = "has the size of the root of its mean square, and moves the weight away from zero"
_KINDS = (
    Kind(name="NAdam", state=frozenset({"exp_avg", "exp_avg_sq", "mu_product"}), gradient=_first_moment,
         assumed=_EQUALS),
    Kind(name="RAdam", state=frozenset({"exp_avg", "exp_avg_sq"}),
         group=frozenset({"decoupled_weight_decay"}), without=frozenset({"amsgrad"}),
         gradient=_first_moment, assumed=_EQUALS),
    Kind(name="Adam", state=frozenset({"exp_avg", "exp_avg_sq"}), group=frozenset({"lr", "betas"}),
         gradient=_first_moment, assumed=_EQUALS),
    Kind(name="Adamax", state=frozenset({"exp_avg", "exp_inf"}), gradient=_first_moment, assumed=_EQUALS),
    Kind(name="Adadelta", state=frozenset({"square_avg", "acc_delta"}), gradient=_root("square_avg"),
         assumed=_SIZE),
    Kind(name="RMSprop", state=frozenset({"square_avg"}), group=frozenset({"alpha"}),
         gradient=_root("square_avg"), assumed=_SIZE),
    Kind(name="Adagrad", state=frozenset({"sum", "step"}), group=frozenset({"lr_decay"}), gradient=_adagrad,
         assumed="has the size of the root of its mean square so far, and moves the weight away from zero"),
    Kind(name="Rprop", state=frozenset({"prev", "step_size"}), gradient=_previous,
         assumed="equals the previous one (prev)"),
    Kind(name="SGD", state=frozenset({"momentum_buffer"}), group=frozenset({"momentum", "dampening"}),
         without=frozenset({"ns_steps"}), gradient=_momentum,
         assumed="leaves the momentum (momentum_buffer) as it is"),
)  # fmt: skip

#: keys of all state that torch's own optimizers keep
PLAIN = frozenset(
    (
        "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "mu_product", "square_avg", "acc_delta",
        "grad_avg", "momentum_buffer", "sum", "prev", "step_size",
    )
)  # fmt: skip


def kind_of(owned: Owned) -> Kind | None:
    """Return the optimizer that such state is of; None for one that is not known here."""
    state, group = set(owned.tensors) | set(owned.numbers), set(owned.group)
    for kind in _KINDS:
        if kind.state <= state and kind.group <= group and not kind.without & group:
            return kind
    return None


def name_of(owned: Owned) -> str:
    """Return the name of the optimizer: "AdamW", or the keys of its state where it is not known."""
    kind = kind_of(owned)
    if kind is None:
        return "an optimizer with " + " and ".join(sorted(owned.tensors)[:3])
    return "AdamW" if kind.name == "Adam" and owned.group.get("decoupled_weight_decay") else kind.name


def next_update(weight: Tensor, owned: Owned, state: Mapping[str, Tensor]) -> Tensor:
    """Return the update that the optimizer would make, in float64.

    ``weight`` and the tensors of ``state`` are flat, in float64, and of one length (or scalars).
    """
    kind = kind_of(owned)
    assert kind is not None
    parameter = torch.nn.Parameter(weight.clone())
    sign = -1.0 if owned.group.get("maximize") else 1.0
    parameter.grad = sign * kind.gradient(weight, state, owned.group)
    optimizer_type = getattr(torch.optim, kind.name)
    known = inspect.signature(optimizer_type).parameters
    # the plain loop, whatever implementation the group asks for
    plain = {k: False for k in ("foreach", "fused", "capturable", "differentiable") if k in known}
    settings = {k: _plain(v) for k, v in owned.group.items() if k in known and v is not None}
    defaults = {k: p.default for k, p in known.items() if p.default is not p.empty}
    # made without its constructor, which loads torch's compiler: seconds
    optimizer = object.__new__(optimizer_type)
    optimizer.defaults, optimizer.state = {}, collections.defaultdict(dict)
    decoupled = {"decoupled_weight_decay": bool(owned.group.get("decoupled_weight_decay", False))}
    optimizer.param_groups = [{**defaults, **settings, **decoupled, **plain, "params": [parameter]}]
    kept = {key: value.clone() for key, value in state.items()}
    if "step" in owned.numbers and "step" not in kept:
        kept["step"] = torch.tensor(float(owned.numbers["step"]))
    optimizer.state[parameter] = kept
    with torch.no_grad():
        inspect.unwrap(optimizer_type.step)(optimizer)
    return parameter.detach() - weight


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else float(value) if isinstance(value, Tensor) else value


def _number(group: Mapping[str, Any], key: str) -> float:
    value = group.get(key, 0.0)
    return float(value) if isinstance(value, (int, float)) else 0.0
