"""Uniform random numbers made in 16 bits, and what is made of them; an instrument of the operation probe.

Such numbers are coarse near 1, where the distance between neighbours is 2**-8 or 2**-11 and not 2**-24. A
function that is singular there (a logarithm of 1 - u, or of -log u) never sees its tail; a comparison with a
probability near 1 comes out as another probability; entries of a table that lie between two of them are never
chosen, nor integers between them when they are scaled and truncated. Numbers near 0 can be as fine as
in float32, which depends on the device, so each use is measured on the numbers that the run has drawn.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from precdoctor.evidence import CoarseUniform, Place
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.models import Models
from precdoctor.observe.probe.forwards import innermost_module
from precdoctor.observe.probe.operations import Operation
from precdoctor.observe.randoms.entries import Choice, Choices
from precdoctor.observe.watch import is_plain

_LOW = (torch.float16, torch.bfloat16)
_DRAWS = ("aten::rand", "aten::rand_like", "aten::uniform_")
#: distance from where a function is singular that a constant keeps, beyond which it has no tail
_SPARED = 2.0**-9
#: chance of 0 among uniform numbers drawn in float32
_FLOAT32_ZERO = 2.0**-24
#: lines kept, and tensors that are followed
_SITES, _TAGS = 128, 4096


def _named(text: str) -> frozenset[str]:
    return frozenset(f"aten::{name}{suffix}" for name in text.split() for suffix in ("", "_"))


#: operations that move numbers
_MOVED = _named(
    "_to_copy copy clone alias index index_select expand repeat cat stack flip view_copy unsqueeze_copy"
)
#: operations after which they are as coarse as before
_PASSED = _MOVED | _named("add sub rsub neg mul div abs clamp clamp_min clamp_max log log2 log10 log1p")
#: argument at which an operation is singular: the distance of its input from there
_SINGULAR: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.abs,
    "log2": torch.abs,
    "log10": torch.abs,
    "reciprocal": torch.abs,
    "rsqrt": torch.abs,
    "log1p": lambda x: (1 + x).abs(),
    "erfinv": lambda x: (1 - x.abs()).abs(),
    "atanh": lambda x: (1 - x.abs()).abs(),
    "logit": lambda x: torch.minimum(x, 1 - x).abs(),
    "special_ndtri": lambda x: torch.minimum(x, 1 - x).abs(),
}
#: of these the numbers lie on one side of where it is singular, or between two such places
_INSIDE = frozenset(("log1p", "erfinv", "atanh", "logit", "special_ndtri"))
#: operations after which they are still evenly spread
_EVEN = _MOVED | _named("add sub rsub neg mul div")
#: share of their range, from which a clamp leaves them evenly spread
_WHOLE = 0.99
_TAILS = {f"aten::{name}{suffix}": name for name in _SINGULAR for suffix in ("", "_")}
_COMPARED = {f"aten::{name}{suffix}": name for name in ("lt", "le", "gt", "ge") for suffix in ("", "_")}


_Use = Literal["tail", "probability", "entry"]


@dataclass(slots=True, eq=False)
class _Drawn:
    """Numbers that are followed."""

    memory: Memory
    spot: Spot | None
    format: str
    distinct: int
    #: where they lie, had they been drawn and computed exactly
    low: float
    high: float
    #: as they were drawn, between 0 and 1; evenly spread between ``low`` and ``high``
    plain: bool
    even: bool
    #: singular functions that they went through
    depth: int = 0


@dataclass(slots=True, eq=False)
class _Site:
    """One line that uses them."""

    drawn_at: Spot | None
    used_at: Spot | None
    use: _Use
    operation: str
    format: str
    module: weakref.ref[nn.Module] | None = None
    name: str = ""
    drawn: int = 0
    distinct: int = 0
    nearest: float = float("inf")
    nearest_count: int = 0
    #: draws in which one nearer than the nearest was expected
    within: float = 0.0
    zeros: int = 0
    largest: float = 0.0
    #: expected and observed number of times that a comparison is true, and that it is false
    expected: tuple[float, float] = (0.0, 0.0)
    observed: tuple[int, int] = (0, 0)
    #: entries of a table that no number chooses, and all
    entries: tuple[int, int] = (0, 0)


class RandomWatch:
    """Follows coarse random numbers; see the module's docstring."""

    def __init__(self, code: UserCode) -> None:
        self._code = code
        self._drawn: dict[int, _Drawn] = {}
        self._sites: dict[tuple[Spot | None, Spot | None, str, int], _Site] = {}
        self._choices = Choices()
        self._before: Tensor | None = None

    # ------------------------------------------------------------------ told by the probe

    def before(self, func: Any, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        """Keep what a function is about to write over."""
        self._before = None
        if (
            self._drawn
            and func._schema.name in _TAILS
            and is_plain(args[0])
            and self._of(args[0]) is not None
        ):
            self._before = args[0].detach().clone()

    def after(self, operation: Operation) -> None:
        """Look for numbers that are drawn, and follow them."""
        if operation.backward:
            return
        name = operation.name
        if name in _DRAWS:
            self._draw(operation)
            return
        if self._choices:
            chosen, source = self._choices.follow(operation)
            self._chosen(operation, chosen, source)
        if not self._drawn:
            return
        inputs = [t for t in operation.inputs if is_plain(t)]
        known = [self._of(t) for t in inputs]
        source = next((k for k in known if k is not None), None)
        if source is None:
            return
        if source.even and source.high < float("inf"):
            numbers, format = inputs[known.index(source)], getattr(torch, source.format)
            ends = source.low, source.high
            self._chosen(operation, self._choices.of(operation, numbers, source, format, ends), source)
        if name in _TAILS:
            self._tail(operation, _TAILS[name], inputs[known.index(source)], source)
        elif name in ("aten::floor", "aten::floor_") and 0 < source.low < 1 and source.high - source.low == 1:
            self._outcome(operation, "floor", source, source.low, operation.outputs[0])
        elif name in _COMPARED and source.plain:
            self._compared(operation, _COMPARED[name], inputs, known, source)
        elif name == "aten::div" and len(known) == 2 and known[0] is None:
            self._tail(operation, "reciprocal", inputs[1], source)
        if name in _PASSED:
            self._pass(operation, name, inputs, known, source)

    def step_begins(self, *_: Any) -> None:
        """Forget what is gone."""
        self._drawn = {key: drawn for key, drawn in self._drawn.items() if not drawn.memory.gone}
        self._choices.forget()

    def fall_asleep(self) -> None:
        """Forget all: numbers are drawn and used at once."""
        self._drawn.clear()
        self._choices.clear()

    # ------------------------------------------------------------------ what is done

    def _of(self, tensor: Tensor) -> _Drawn | None:
        drawn = self._drawn.get(storage_key(tensor))
        return drawn if drawn is not None and not drawn.memory.gone else None

    def _draw(self, operation: Operation) -> None:
        out = operation.outputs[0] if operation.outputs else None
        if out is None or not is_plain(out):
            return
        if out.dtype not in _LOW or len(self._drawn) >= _TAGS:
            self._drawn.pop(storage_key(out), None)
            return
        bounds = [*operation.args[1:3], *([0.0, 1.0][len(operation.args[1:3]) :])]
        unit = operation.name != "aten::uniform_" or (bounds[0] == 0 and bounds[1] == 1)
        self._drawn[storage_key(out)] = _Drawn(
            memory=Memory(out),
            spot=self._code.innermost(operation.frame)[0],
            format=str(out.dtype).removeprefix("torch."),
            distinct=int(torch.unique(out.detach().reshape(-1)[: 1 << 18]).numel()),
            low=float(bounds[0]),
            high=float(bounds[1]),
            plain=unit,
            even=True,
        )

    def _pass(
        self,
        operation: Operation,
        name: str,
        inputs: list[Tensor],
        known: list[_Drawn | None],
        source: _Drawn,
    ) -> None:
        """Follow the numbers into a result that is as coarse as they are."""
        out = operation.outputs[0] if operation.outputs else None
        if out is None or not is_plain(out) or not out.is_floating_point():
            return
        position = next(index for index, k in enumerate(known) if k is source)
        support = _support(name, operation, inputs, position, source) if name not in _MOVED else None
        if name in _MOVED:
            support = source.low, source.high
        if support is None:
            self._drawn.pop(storage_key(out), None)
            return
        whole = "clamp" in name and support[1] - support[0] >= _WHOLE * (source.high - source.low)
        self._drawn[storage_key(out)] = _Drawn(
            memory=Memory(out),
            spot=source.spot,
            format=source.format,
            distinct=source.distinct,
            low=support[0],
            high=support[1],
            plain=source.plain and name in _MOVED,
            even=source.even and (name in _EVEN or whole),
            depth=source.depth + (name in _TAILS),
        )

    def _site(self, operation: Operation, use: _Use, what: str, source: _Drawn) -> _Site:
        spot = self._code.innermost(operation.frame)[0]
        key = (source.spot, spot, what, source.depth)
        site = self._sites.get(key)
        if site is None:
            site = _Site(source.spot, spot, use, what, source.format)
            if len(self._sites) < _SITES:
                self._sites[key] = site
        module = innermost_module(operation.frame)
        if site.module is None and module is not None:
            site.module = weakref.ref(module)
        site.distinct = max(site.distinct, source.distinct)
        return site

    def _tail(self, operation: Operation, what: str, argument: Tensor, source: _Drawn) -> None:
        """Look how close a singular function's argument comes to where it is singular."""
        before = self._before if self._before is not None else argument
        distance = _SINGULAR[what](before.detach().double()).reshape(-1)
        if not distance.numel():
            return
        ends = torch.tensor([source.low, source.high], dtype=torch.float64)
        spared = float(_SINGULAR[what](ends).min())  # it lies this far outside of where the numbers can be
        if what not in _INSIDE and source.low < 0 < source.high:
            spared = 0.0
        if spared > _SPARED:
            return
        site = self._site(operation, "tail", what, source)
        away = distance[distance > 0]
        nearest = float(away.min()) if away.numel() else float("inf")
        count = int((away == nearest).sum())
        if nearest <= site.nearest:
            site.nearest_count = count + (site.nearest_count if nearest == site.nearest else 0)
            site.nearest = nearest
        site.drawn += distance.numel()
        site.zeros += distance.numel() - away.numel()
        width = min(max(source.high - source.low, 1e-3), 2.0) if source.high < float("inf") else 1.0
        if spared < float("inf") and site.nearest < float("inf"):
            site.within = site.drawn * max(site.nearest - spared, 0.0) / width
        out = operation.outputs[0].detach()
        finite = out[torch.isfinite(out)]
        site.largest = max(site.largest, float(finite.abs().max()) if finite.numel() else 0.0)

    def _compared(
        self,
        operation: Operation,
        what: str,
        inputs: list[Tensor],
        known: list[_Drawn | None],
        source: _Drawn,
    ) -> None:
        """Compare how often a comparison is true with how often it was meant to be."""
        position = known.index(source)
        other: Any = inputs[1 - position] if len(inputs) == 2 else None
        if len(inputs) == 1:
            other = next((a for a in operation.args if isinstance(a, (int, float))), None)
        if other is None or (isinstance(other, Tensor) and known[1 - position] is not None):
            return
        chance = other.detach().double() if isinstance(other, Tensor) else float(other)
        # u < p, or p > u
        below = (what in ("lt", "le")) == (position == 0)
        self._outcome(operation, what, source, chance if below else 1 - chance, operation.outputs[0])

    def _outcome(self, operation: Operation, what: str, source: _Drawn, chance: Any, outcome: Tensor) -> None:
        count = outcome.numel()
        mean = float(torch.as_tensor(chance, dtype=torch.float64).clamp(0, 1).mean())
        if not count:
            return
        # of float32 uniforms as well some are exactly 0, where the reals have none
        mean = min(max(mean, _FLOAT32_ZERO), 1 - _FLOAT32_ZERO)
        site = self._site(operation, "probability", what, source)
        true = int((outcome != 0).sum())
        site.drawn += count
        site.expected = (site.expected[0] + mean * count, site.expected[1] + (1 - mean) * count)
        site.observed = (site.observed[0] + true, site.observed[1] + count - true)

    def _chosen(self, operation: Operation, chosen: Choice | None, source: _Drawn) -> None:
        if chosen is None:
            return
        site = self._site(operation, "entry", operation.name.removeprefix("aten::"), source)
        site.drawn += chosen.drawn
        site.expected = (
            site.expected[0] + chosen.expected,
            site.expected[1] + chosen.drawn - chosen.expected,
        )
        site.observed = (site.observed[0] + chosen.observed, site.observed[1])
        site.entries = max(site.entries, (chosen.unreached, chosen.entries))

    # ------------------------------------------------------------------ afterwards

    def look(self, models: Models) -> None:
        """Note the names of modules while they live."""
        wanted = [s for s in self._sites.values() if not s.name and s.module is not None]
        if not wanted:
            return
        names = models.module_names()
        for site in wanted:
            module = site.module() if site.module is not None else None
            site.name = names.get(id(module), "") if module is not None else ""

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[CoarseUniform, ...]:
        """Return what was seen of each use."""
        return tuple(_record(site, place) for site in self._sites.values())


def _support(
    name: str, operation: Operation, inputs: list[Tensor], position: int, source: _Drawn
) -> tuple[float, float] | None:
    """Return where exact numbers lie after an operation with constants; None where others go into it."""
    if any(t.numel() != 1 or t.device.type != "cpu" for i, t in enumerate(inputs) if i != position):
        return None
    if "clamp" in name and _is_eps(operation, inputs[position].dtype):
        return source.low, source.high  # as torch.distributions does, for want of finer numbers
    ends = torch.tensor([source.low, source.high], dtype=torch.float64)
    args = [ends if a is inputs[position] else a for a in operation.args]
    function = getattr(torch, name.removeprefix("aten::").removesuffix("_"), None)
    if function is None or not args:
        return None
    found = function(*args, **operation.kwargs)
    low, high = float(found.min()), float(found.max())
    if "abs" in name and source.low < 0 < source.high:
        low = 0.0
    return (low, high) if low < high else None


def _is_eps(operation: Operation, dtype: torch.dtype) -> bool:
    """Tell whether a clamp keeps away from 0 or 1 by no more than the format's eps."""
    given = [*operation.args[1:], *operation.kwargs.values()]
    bounds = [float(b) for b in given if isinstance(b, (int, float))]
    return bool(bounds) and all(min(abs(b), abs(1 - b)) <= torch.finfo(dtype).eps for b in bounds)


def _record(site: _Site, place: Callable[[Spot | None], Place | None]) -> CoarseUniform:
    rarer = 0 if site.use == "entry" or site.expected[0] <= site.expected[1] else 1
    tail = site.use == "tail"
    return CoarseUniform(
        format=site.format,
        use=site.use,
        place=place(site.drawn_at),
        used_at=place(site.used_at),
        operation=site.operation,
        module=site.name,
        drawn=site.drawn,
        distinct=site.distinct,
        nearest=site.nearest,
        nearest_count=site.nearest_count,
        zeros=site.zeros,
        largest=site.largest,
        expected=site.within if tail else site.expected[rarer],
        observed=0.0 if tail else float(site.observed[rarer]),
        unreached=site.entries[0],
        entries=site.entries[1],
    )
