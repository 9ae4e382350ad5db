"""Decays that are rounded before they are used; an instrument of the operation probe.

A factor of 0.9999 is 1 in 16 bits, and what it leaves to 1 is 0: an average that is scaled by it forgets
nothing and takes nothing up. The sums themselves look sound then, since nothing is lost in adding zeros, so
the factor is followed from the cast that has rounded it, or from the call that made it of a number. Only
factors of one element on the CPU are looked at, which nothing has to wait for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from precdoctor.evidence import Place, RoundedDecay
from precdoctor.observe.decays.arguments import first_number
from precdoctor.observe.frames import INTERCEPTS, Spot, UserCode
from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.lineage.origins import LOW
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.shadow.table import replay
from precdoctor.observe.watch import is_plain

#: factors that count as decays
_LEAST = 0.9
#: error of what a decay leaves to 1, over what it was meant to be, from which it is another decay
_OFF = 0.5
#: operations that give a tensor a number, or the value of another one, and its place among the arguments
_MADE = {
    "aten::_to_copy": 0,
    "aten::copy_": 1,
    "aten::full": 1,
    "aten::full_like": 1,
    "aten::new_full": 2,
    "aten::fill_": 1,
    "aten::scalar_tensor": 0,
}
#: what `torch.tensor`, `torch.as_tensor` and the like end with, when the number is rounded already
_LIFTED = "aten::lift_fresh"
#: operations through which a factor is followed
_FOLLOWED = frozenset(
    f"aten::{name}{suffix}" for name in ("clone", "rsub", "sub", "add", "neg") for suffix in ("", "_")
)
#: operations that scale by it
_SCALES = frozenset(
    f"aten::{name}{suffix}"
    for name in ("mul", "lerp", "_foreach_mul", "_foreach_lerp")
    for suffix in ("", "_")
)
_POWER = "aten::pow"
#: operations after which what was scaled may come back to be scaled again
_CARRIED = frozenset(
    f"aten::{name}{suffix}"
    for name in ("mul", "add", "sub", "rsub", "addcmul", "lerp", "clone", "_to_copy", "copy", "where")
    for suffix in ("", "_")
)
#: lines kept, and tensors that are followed
_SITES, _FACTORS, _CHAINS = 64, 1024, 1 << 14


@dataclass(slots=True, eq=False)
class _Factor:
    """A tensor of one element: a decay, or what one leaves to 1."""

    memory: Memory
    exact: float
    #: the decay itself, as meant and as stored, its format, and the line that rounded it
    meant: float
    stored: float
    format: str
    spot: Spot | None


@dataclass(slots=True, eq=False)
class _Site:
    factor: _Factor
    spot: Spot | None
    uses: int = 0
    steps: set[int] = field(default_factory=set)
    #: times that one value was scaled, one after another
    repeats: int = 0


@dataclass(slots=True, eq=False)
class _Chain:
    """A tensor that was scaled so many times over."""

    memory: Memory
    spot: Spot | None
    repeats: int


class DecayWatch:
    """Follows decays that were rounded; see the module's docstring."""

    def __init__(self, code: UserCode) -> None:
        self._code = code
        self._factors: dict[int, _Factor] = {}
        self._sites: dict[tuple[Spot | None, Spot | None], _Site] = {}
        #: by memory and offset there: one buffer may hold the results of all steps of a recurrence
        self._chains: dict[tuple[int, int], _Chain] = {}

    # ------------------------------------------------------------------ told by the probe

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Nothing: what is written over is looked at when it is written."""

    def after(self, operation: Operation) -> None:
        """Look for decays that are rounded, and for what uses them."""
        if operation.backward:
            return
        name = operation.name
        scaling = self._scaled(operation) if self._factors and (name in _SCALES or name == _POWER) else None
        if scaling is not None or self._chains:
            self._carry(operation, name, scaling)
        out = operation.out
        if not isinstance(out, Tensor) or out.numel() != 1 or out.device.type != "cpu" or not is_plain(out):
            return
        if name in _MADE or name == _LIFTED:
            self._made(operation, name, out)
        elif self._factors and name in _FOLLOWED:
            self._follow(operation, name, out)

    def step_begins(self, *_: Any) -> None:
        """Forget what is gone."""
        self._factors = {key: known for key, known in self._factors.items() if not known.memory.gone}
        self._chains = {key: chain for key, chain in self._chains.items() if not chain.memory.gone}

    def fall_asleep(self) -> None:
        """Forget what is gone; what lives on may be used later."""
        self.step_begins()

    # ------------------------------------------------------------------ what is done

    def _of(self, value: Any) -> _Factor | None:
        if not isinstance(value, Tensor) or value.numel() != 1 or not is_plain(value):
            return None
        known = self._factors.get(storage_key(value))
        return known if known is not None and not known.memory.gone else None

    def _put(self, factor: _Factor) -> None:
        if len(self._factors) < _FACTORS:
            self._factors[factor.memory.key] = factor

    def _made(self, operation: Operation, name: str, out: Tensor) -> None:
        self._factors.pop(storage_key(out), None)
        source: Any = self._given(operation, out) if name == _LIFTED else operation.args[_MADE[name]]
        known = self._of(source)
        if known is not None:
            self._put(replace(known, memory=Memory(out)))
            return
        if out.dtype not in LOW or not isinstance(source, (int, float, Tensor)):
            return
        if isinstance(source, Tensor) and (source.device.type != "cpu" or not source.is_floating_point()):
            return
        meant, stored = float(source), float(out)
        if _LEAST < meant < 1 and abs(stored - meant) > _OFF * (1 - meant):
            spot = self._code.innermost(operation.frame)[0]
            format = str(out.dtype).removeprefix("torch.")
            self._put(_Factor(Memory(out), meant, meant, stored, format, spot))

    def _follow(self, operation: Operation, name: str, out: Tensor) -> None:
        """Follow what is made of a decay and numbers: what it leaves to 1."""
        tensors = list(tensors_in(operation.args))
        known = [self._of(t) for t in tensors]
        factor = next((k for k in known if k is not None), None)
        if factor is None or any(k is None for k in known) or name.endswith("_"):
            self._factors.pop(storage_key(out), None)
            return

        def exact(tensor: Tensor) -> Tensor:
            found = self._of(tensor)
            return torch.full_like(tensor, found.exact if found is not None else 0.0, dtype=torch.float64)

        left = float(replay(operation.func, operation.args, operation.kwargs, exact))
        self._put(replace(factor, memory=Memory(out), exact=left))

    def _given(self, operation: Operation, out: Tensor) -> float | None:
        """Return the number that the program's own line has made a tensor of, where it can be known."""
        if out.dtype not in LOW or not _LEAST <= float(out) <= 1:
            return None
        frame: FrameType | None = operation.frame
        while frame is not None and frame.f_code.co_name in INTERCEPTS:
            frame = frame.f_back
        if frame is None or not self._code.is_user(frame.f_code.co_filename):
            return None
        number = first_number(frame)
        # half an ulp just below 1: else it is the number of something else
        near = number is not None and abs(number - float(out)) <= torch.finfo(out.dtype).eps / 4
        return number if near else None

    def _scaled(self, operation: Operation) -> _Site | None:
        """Take note of a tensor that is scaled by a decay, or by what it leaves to 1."""
        results = operation.outputs or operation.inputs  # those in place on lists return nothing
        if any(t.requires_grad for t in results):
            return None
        scaling = operation.args[:1] if operation.name == _POWER else operation.inputs
        factor = next((k for t in scaling if (k := self._of(t)) is not None), None)
        if factor is None:
            return None
        spot = self._code.innermost(operation.frame)[0]
        site = self._sites.get((factor.spot, spot))
        if site is None:
            site = _Site(factor, spot)
            if len(self._sites) < _SITES:
                self._sites[factor.spot, spot] = site
        if max(t.numel() for t in results) > 1:
            site.uses += 1
            site.steps.add(operation.step)
        return site

    def _carry(self, operation: Operation, name: str, site: _Site | None) -> None:
        """Count how many times over a value has been scaled, where it comes back to be scaled again."""
        out = operation.out
        if site is not None and name == _POWER:
            site.repeats = max(site.repeats, _largest(operation.args[1]))
        if not name or not isinstance(out, Tensor) or not is_plain(out):
            return
        key = _position(out)
        if not operation.func._schema.is_mutable and any(
            storage_key(t) == key[0] for t in operation.inputs if is_plain(t)
        ):
            return  # a view
        inputs = operation.inputs[1:] if name == "aten::copy_" else operation.inputs
        found = [self._chains.get(_position(t)) for t in inputs if is_plain(t)]
        chains = [c for c in found if c is not None and not c.memory.gone] if name in _CARRIED else []
        if site is not None:
            chains = [c for c in chains if c.spot == site.factor.spot]
        chain = max(chains, key=lambda c: c.repeats, default=None)
        if chain is None and (site is None or name == _POWER):
            self._chains.pop(key, None)
            return
        repeats = (chain.repeats if chain is not None else 0) + (site is not None)
        spot = site.factor.spot if site is not None else chain.spot if chain is not None else None
        if len(self._chains) >= _CHAINS:
            self.step_begins()
        if len(self._chains) < _CHAINS:
            self._chains[key] = _Chain(Memory(out), spot, repeats)
        if site is not None:
            site.repeats = max(site.repeats, repeats)

    # ------------------------------------------------------------------ afterwards

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[RoundedDecay, ...]:
        """Return what was seen of each use."""
        return tuple(
            RoundedDecay(
                format=site.factor.format,
                place=place(site.factor.spot),
                used_at=place(site.spot),
                function=site.spot.function if site.spot is not None else "",
                meant=site.factor.meant,
                stored=site.factor.stored,
                uses=site.uses,
                steps=len(site.steps),
                repeats=site.repeats,
            )
            for site in self._sites.values()
            if site.uses or site.repeats > 1
        )


def _position(tensor: Tensor) -> tuple[int, int]:
    return storage_key(tensor), int(tensor.storage_offset())


def _largest(exponent: Any) -> int:
    """Return the largest of exponents on the CPU; 0 where it is not known."""
    if isinstance(exponent, Tensor):
        if exponent.device.type != "cpu" or not is_plain(exponent) or not exponent.numel():
            return 0
        exponent = float(exponent.max())
    return int(exponent) if math.isfinite(exponent) else 0
