"""Quantizers of gradients: what a backward pass computes with beside the gradient that it was given.

In programs that train with products in 4 or 8 bits. Measured over a sample of the elements; the gradient is
what a function of the program gets, or makes before it rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from precdoctor.evidence import GradientQuantizer, Place
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.lineage.gradients import GradientLineage
from precdoctor.observe.lineage.lineage import Use
from precdoctor.observe.lineage.made import Made, Root
from precdoctor.observe.probe.operations import Operation
from precdoctor.observe.quantizers.fidelity import CODES, sample
from precdoctor.observe.watch import Watch, is_plain

#: elements of a gradient that are looked at
_SAMPLE = 1 << 14


@dataclass(slots=True)
class _Site:
    """What is known of one place where gradients are rounded."""

    place: Spot | None
    rounding: Spot | None
    function: str
    shape: tuple[int, ...]
    format: str
    random: bool = False
    projections: list[float] = field(default_factory=list)
    biases: list[float] = field(default_factory=list)
    decibels: list[float] = field(default_factory=list)
    flushed: list[float] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)


class GradientQuantizerWatch:
    """Compares gradients with what becomes of them on a grid; an instrument of the operation probe."""

    def __init__(self, code: UserCode) -> None:
        self._lineage = GradientLineage(code, on_gradient=self._on_gradient, on_use=self._on_use)
        self._gradients: dict[Root, tuple[Watch, Tensor]] = {}
        self._judged: set[Made] = set()
        self._sites: dict[tuple[Any, ...], _Site] = {}

    # ------------------------------------------------------------------ told by the probe

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pass on to the lineage."""
        self._lineage.before(func, args, kwargs)

    def after(self, operation: Operation) -> None:
        """Pass on to the lineage."""
        self._lineage.after(operation)

    def step_begins(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Look at the gradients that the optimizer gets, and forget those of this step."""
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            gradient = parameter.grad
            made = self._lineage.made(gradient) if gradient is not None and is_plain(gradient) else None
            if isinstance(made, Made):
                for root in made.roots:
                    self._compare(root, made, gradient)
        self._lineage.step_begins(optimizer, step)
        self._forget()

    def fall_asleep(self) -> None:
        """Let go of the gradients."""
        self._lineage.fall_asleep()
        self._forget()

    def _forget(self) -> None:
        self._gradients.clear()
        self._judged.clear()

    # ------------------------------------------------------------------ told by the lineage

    def _on_gradient(self, root: Root, tensor: Tensor) -> None:
        watch = Watch.of(root.numel, _SAMPLE)
        self._gradients[root] = watch, sample(watch, tensor)

    def _on_use(self, use: Use) -> None:
        if use.made is not None:
            self._compare(use.root, use.made, use.tensor)

    def _compare(self, root: Root, made: Made, tensor: Tensor) -> None:
        known = self._gradients.get(root)
        if known is None or made.values != "rounded" or made in self._judged or made.rounded is None:
            return
        self._judged.add(made)
        watch, gradient = known
        used = _used(tensor, made, root, watch, gradient)
        signal = float(gradient.square().sum())
        if used is None or not bool(torch.isfinite(used).all()) or not math.isfinite(signal) or signal == 0:
            return
        filled = gradient != 0
        flushed = filled & (used == 0)
        if not bool(flushed.any()) and int(torch.unique(used.abs()[filled]).numel()) == 1:
            return  # signs are no approximation
        site = self._site(made, root.shape)
        site.random = site.random or made.random
        site.flushed.append(float(flushed.sum() / filled.sum()))
        site.energy.append(float(gradient[flushed].square().sum()) / signal)
        if float(used.abs().max()) <= CODES * float(gradient.abs().max()):
            error = used - gradient
            noise = float(error.square().sum())
            site.projections.append(float((used * gradient).sum()) / signal)
            site.biases.append(float(error.sum().abs() / gradient.abs().sum()))
            site.decibels.append(10 * math.log10(signal / noise) if noise > 0 else math.inf)

    def _site(self, made: Made, shape: tuple[int, ...]) -> _Site:
        entry = made.entry
        place, function = (entry.spot, entry.inner.function) if entry is not None else (None, "")
        rounded = made.rounded or made
        rounding, fmt = rounded.spot, str(rounded.dtype).removeprefix("torch.")
        new = _Site(place, rounding, function, shape, fmt)
        return self._sites.setdefault((place, rounding, shape), new)

    # ------------------------------------------------------------------ afterwards

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[GradientQuantizer, ...]:
        """Return what was seen, in the order of first sight."""
        return tuple(
            GradientQuantizer(
                place=place(site.place),
                rounding=place(site.rounding),
                function=site.function,
                seen=len(site.flushed),
                shape=site.shape,
                format=site.format,
                random=site.random,
                projection=_median(site.projections),
                bias=_median(site.biases),
                sqnr_db=_median(site.decibels),
                flushed_share=median(site.flushed),
                flushed_energy=median(site.energy),
            )
            for site in self._sites.values()
        )


def _used(tensor: Tensor, made: Made, root: Root, watch: Watch, gradient: Tensor) -> Tensor | None:
    """Return the watched elements of used values, in the order of the gradient; None where it is another.

    A matrix may have been transposed on the way: whichever is the closer one.
    """
    if math.prod(made.size) != root.numel or tensor.dtype != made.dtype:
        return None
    base = tensor.detach().as_strided(made.size, made.stride, made.offset)
    found = sample(watch, base.reshape(root.shape))
    if base.dim() == 2:
        turned = sample(watch, base.t().reshape(root.shape))
        if float((turned - gradient).square().sum()) < float((found - gradient).square().sum()):
            return turned
    return found


def _median(values: list[float]) -> float | None:
    found = median(values) if values else None
    return None if found is None or math.isinf(found) else found
