"""The bench test: ask the user's own optimizer, on toy tensors, how it treats small updates.

One step can't tell a frozen weight from one whose lost remainder is kept elsewhere (Kahan buffer, own
float32 master) or brought back by chance (stochastic rounding). Several hundred steps beside a float64
twin can. All of it happens off the run, on copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from precdoctor import formats
from precdoctor.evidence import Bench
from precdoctor.observe.steps.first import first_state
from precdoctor.observe.steps.twin import CannotReplay, is_sparse, setting, step, twin, undisturbed_rng
from precdoctor.observe.steps.wrapping import keeper

_STEPS = 300
#: toy weights: not at a binade's edge, inside [-1, 1]
_WEIGHT = 0.69921875
#: shapes by number of dimensions: small, with at least two of everything that is reduced over
_SHAPES: dict[int, tuple[int, ...]] = {
    0: (),
    1: (64,),
    2: (8, 12),
    3: (6, 4, 4),
    4: (6, 4, 3, 3),
    5: (4, 3, 2, 2, 2),
}


def is_elementwise(optimizer: torch.optim.Optimizer, group: int, ndim: int) -> tuple[bool, bool]:
    """Tell whether each element's update depends on that element alone, and whether steps draw randomly.

    A toy tensor with ``ndim`` dimensions is stepped beside a flat subset of itself, under gradients with
    spikes (shrinking gradients would not show an optimizer that clips by the tensor's norm).
    Raises `CannotReplay` when the optimizer can't be stepped at all.
    """
    try:
        return _is_elementwise(optimizer, group, ndim, torch.float64)
    except CannotReplay:  # state that it makes in float32 takes no float64 gradient
        return _is_elementwise(optimizer, group, ndim, torch.float32)


def _is_elementwise(
    optimizer: torch.optim.Optimizer, group: int, ndim: int, dtype: torch.dtype
) -> tuple[bool, bool]:
    generator = torch.Generator().manual_seed(7)
    start = torch.randn(_SHAPES.get(ndim, (2,) * ndim), generator=generator, dtype=dtype)
    gradients = []
    for index in range(5):
        gradient = torch.randn(start.shape, generator=generator, dtype=dtype)
        if index in (2, 3) and gradient.ndim:
            gradient.view(-1)[1::2] *= 300.0  # none of them in the subset
        gradients.append(gradient)
    with undisturbed_rng():
        torch.manual_seed(11)
        before = torch.get_rng_state()
        whole = _travel(optimizer, group, start, gradients)
        draws = not torch.equal(before, torch.get_rng_state())
        if ndim == 0:
            return True, draws
        pick = slice(None, None, 2)
        torch.manual_seed(11)
        try:
            part = _travel(
                optimizer, group, start.reshape(-1)[pick], [g.reshape(-1)[pick] for g in gradients]
            )
        except CannotReplay:
            return False, draws
    expected = whole.reshape(-1)[pick]
    # 2 %: state in a low format rounds differently in vector and scalar code
    same = bool((expected - part).abs().mean() <= 0.02 * expected.abs().mean())
    return same or draws, draws


def decay_setting(optimizer: torch.optim.Optimizer, group: int) -> str | None:
    """Return the name of the setting that shrinks weights without a gradient; None where none does.

    That of torch's optimizers is taken at its word, if it is not 0; others are found by trying a toy.
    """
    settings = optimizer.param_groups[group]
    known = "weight_decay" if "weight_decay" in settings else None
    if setting(settings.get("weight_decay")):
        return known
    start, nothing = torch.full((4,), _WEIGHT, dtype=torch.float64), [torch.zeros(4, dtype=torch.float64)]
    try:
        with undisturbed_rng():
            if not bool((_travel(optimizer, group, start, nothing) < 0).all()):
                return known
            for name, value in settings.items():
                number = setting(value) if name not in ("lr", "params") else None
                if number and not bool(_travel(optimizer, group, start, nothing, {name: 0.0}).any()):
                    return str(name)
    except CannotReplay:
        pass
    return known


def bench(optimizer: torch.optim.Optimizer, group: int, dtype: torch.dtype, ndim: int) -> Bench:
    """Step the optimizer's class in ``dtype`` beside a float64 twin, with small and with large updates."""
    name = str(dtype).removeprefix("torch.")
    with undisturbed_rng():
        torch.manual_seed(13)
        before = torch.get_rng_state()
        try:
            half_ulp = formats.half_ulp(formats.by_name(name), _WEIGHT, +1)
            typical = _typical_update(optimizer, group, ndim)
            small, rounds_inside = _edq(optimizer, group, dtype, ndim, 0.12 * half_ulp / typical, _STEPS)
            large, _ = _edq(optimizer, group, dtype, ndim, 8 * half_ulp / typical, 8)
            finite = _survives_zero_gradient(optimizer, group, dtype, ndim)
        except CannotReplay as error:
            return Bench(group=group, format=name, why_not=str(error))
        draws = not torch.equal(before, torch.get_rng_state())
    return Bench(
        group=group,
        format=name,
        edq_small=small,
        edq_large=large,
        rounds_inside=rounds_inside,
        random=draws,
        zero_gradient_finite=finite,
    )


def _travel(
    optimizer: torch.optim.Optimizer,
    group: int,
    start: Tensor,
    gradients: list[Tensor],
    overrides: Mapping[str, Any] | None = None,
) -> Tensor:
    parameter = torch.nn.Parameter(start.clone())
    # not the group's own lr: a warm-up starts at 0, and then every optimizer looks elementwise
    settings = {**_learning_rate(optimizer, group, 1e-3), **(overrides or {})}
    shadow = _shadow(optimizer, group, parameter, settings)
    for gradient in gradients:
        parameter.grad = _like_its_own(optimizer, group, gradient.clone())
        step(shadow)
    return parameter.detach() - start


def _shadow(
    optimizer: torch.optim.Optimizer,
    group: int,
    toy: torch.nn.Parameter,
    overrides: Mapping[str, Any] | None = None,
    *,
    same_implementation: bool = False,
) -> torch.optim.Optimizer:
    """Return a shadow that holds a toy alone, before its first step."""
    state = first_state(optimizer, group, toy)
    return twin(optimizer, group, [toy], [state], overrides, same_implementation=same_implementation)


def _like_its_own(optimizer: torch.optim.Optimizer, group: int, gradient: Tensor) -> Tensor:
    """Return a toy's gradient, sparse where those of the group are."""
    sparse = any(is_sparse(p.grad) for p in optimizer.param_groups[group]["params"])
    return gradient.to_sparse() if sparse else gradient


def _toy(dtype: torch.dtype, ndim: int) -> tuple[torch.nn.Parameter, Tensor]:
    """Return toy weights and the direction of their gradients, of random signs."""
    generator = torch.Generator().manual_seed(17)
    sign = torch.randint(0, 2, _SHAPES.get(ndim, (2,) * ndim), generator=generator).double() * 2 - 1
    return torch.nn.Parameter((_WEIGHT * sign).to(dtype)), torch.randn(
        sign.shape, generator=generator
    ).double()


def _typical_update(optimizer: torch.optim.Optimizer, group: int, ndim: int) -> float:
    """Return the root mean square update of a float64 toy per step, at the group's own settings."""
    parameter, direction = _toy(torch.float64, ndim)
    start = parameter.detach().clone()
    shadow = _shadow(optimizer, group, parameter, _settings(optimizer, group, 1.0))
    for _ in range(8):
        parameter.grad = _like_its_own(optimizer, group, direction.clone())
        step(shadow)
    typical = float((parameter.detach() - start).square().mean().sqrt()) / 8
    if not (typical > 0 and math.isfinite(typical)):
        raise CannotReplay("its toy updates are zero or not finite")
    return typical


def _settings(optimizer: torch.optim.Optimizer, group: int, scale: float) -> dict[str, Any]:
    """Return settings under which updates are ``scale`` times those at lr 1e-3, without weight decay."""
    settings = optimizer.param_groups[group]
    if "lr" not in settings:
        raise CannotReplay("its groups have no learning rate")
    decay = {"weight_decay": 0.0} if "weight_decay" in settings else {}
    return {**_learning_rate(optimizer, group, 1e-3 * scale), **decay}


def _learning_rate(optimizer: torch.optim.Optimizer, group: int, lr: float) -> dict[str, Any]:
    present = optimizer.param_groups[group].get("lr")
    if present is None:
        return {}
    return {"lr": torch.tensor(lr) if isinstance(present, Tensor) else lr}


def _edq(
    optimizer: torch.optim.Optimizer, group: int, dtype: torch.dtype, ndim: int, scale: float, steps: int
) -> tuple[float, bool]:
    """Return <stored travel, exact travel> / <exact, exact>, and whether the exact one sits on the grid."""
    settings = _settings(optimizer, group, scale)
    stored, direction = _toy(dtype, ndim)
    exact, _ = _toy(torch.float64, ndim)
    start = exact.detach().clone()
    low = _shadow(optimizer, group, stored, settings, same_implementation=True)
    step_low = _stepper(optimizer, low)
    high = _shadow(optimizer, group, exact, settings)
    on_grid = True
    for index in range(steps):
        # the same direction every step, so that remainders must add up; its size varies, or optimizers
        # that divide by the gradient's own variance (centered RMSprop) would divide by zero
        gradient = direction * (1.0 + 0.9 * math.sin(1.7 * index))
        stored.grad = _like_its_own(optimizer, group, gradient.to(dtype))
        exact.grad = _like_its_own(optimizer, group, gradient.clone())
        step_low()
        step(high)
        if index < 3:
            on_grid = on_grid and torch.equal(exact.detach().to(dtype).double(), exact.detach())
    applied, intended = stored.detach().double() - start, exact.detach() - start
    power = float((intended * intended).sum())
    if power == 0:
        # nothing arrived even in float64: a shadow that rounds inside, without chance
        return 0.0, on_grid
    return float((applied * intended).sum()) / power, on_grid


def _survives_zero_gradient(
    optimizer: torch.optim.Optimizer, group: int, dtype: torch.dtype, ndim: int
) -> bool:
    parameter, _ = _toy(dtype, ndim)
    shadow = _shadow(optimizer, group, parameter, same_implementation=True)
    parameter.grad = _like_its_own(optimizer, group, torch.zeros_like(parameter))
    _stepper(optimizer, shadow)()
    return bool(torch.isfinite(parameter).all())


def _stepper(optimizer: torch.optim.Optimizer, shadow: torch.optim.Optimizer) -> Callable[[], None]:
    """Return what steps a shadow as the run's optimizer is stepped: through a wrapper like its own."""
    around = keeper(optimizer)
    if around is None:
        return lambda: step(shadow)
    like = around.again(shadow)

    def stepped() -> None:
        like.before()
        step(shadow)
        like.after()

    return stepped
