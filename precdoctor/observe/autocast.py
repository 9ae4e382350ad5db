"""Autocast regions: what was asked for, what torch made of it, and what ran inside them.

Making, entering and leaving a region are wrapped while this is attached; the products inside are counted
while the operation probe is awake. Autocast belongs to a thread: calls of layers tell what runs in others.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import nn

from precdoctor.evidence import Place, Product, Region
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.patches import Patches
from precdoctor.observe.probe.forwards import outside_of_modules
from precdoctor.observe.probe.operations import Operation

#: regions kept, by the lines that make and enter them
_REGIONS = 256
_PRODUCTS_TEXT = """
mm addmm bmm baddbmm mv addmv addbmm linear _grouped_mm convolution _convolution mkldnn_convolution
cudnn_convolution mkldnn_rnn_layer _cudnn_rnn lstm gru _thnn_fused_lstm_cell _thnn_fused_gru_cell
_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
"""
#: the operations that autocast is there for
PRODUCTS = frozenset(f"aten::{name}" for name in _PRODUCTS_TEXT.split())
#: torch's function around one that is decorated with a region
_DECORATED = "decorate_autocast"

_Key = tuple[Spot | None, Spot | None, str, str, bool, bool, bool]


@dataclass(slots=True, eq=False)
class _Made:
    """What was asked for when a region was made."""

    ref: weakref.ref[torch.autocast]
    spot: Spot | None
    requested: bool
    entered: bool = False
    key: _Key | None = None


@dataclass(slots=True, eq=False)
class _Site:
    """The regions of one line."""

    key: _Key
    entered: int = 0
    seen: int = 0
    steps_inside: int = 0
    last_step: int = 0
    #: by device and format: all, and those with an operand that is trained
    products: Counter[tuple[str, str]] = field(default_factory=Counter)
    trained: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: calls of trained layers while it was open: in its thread, and in others with autocast and without
    layers_inside: int = 0
    layers_cast: int = 0
    layers_elsewhere: int = 0
    elsewhere: Spot | None = None

    @property
    def off(self) -> bool:
        """Tell whether it is disabled on purpose: an island."""
        return not self.key[4]


_Stack = list[tuple[weakref.ref[Any], _Site, int]]


class _Open(threading.local):
    """The regions that this thread is in, outermost first, with the step at which each was entered.

    The stacks of all threads are in ``everywhere``, by the identity of the thread.
    """

    def __init__(self, everywhere: dict[int, _Stack]) -> None:
        self.stack: _Stack = []
        everywhere[threading.get_ident()] = self.stack


class RegionWatch:
    """Watches autocast regions; an instrument of the operation probe, which ``looking`` tells to be awake."""

    def __init__(
        self,
        code: UserCode,
        quietly: Callable[[Callable[[], None]], bool],
        looking: Callable[[], bool],
    ) -> None:
        self._code, self._quietly, self._looking = code, quietly, looking
        self._patches = Patches()
        self._made: dict[int, _Made] = {}
        #: made since the last product
        self._fresh: list[_Made] = []
        self._sites: dict[_Key, _Site] = {}
        #: products that ran in no region
        self._outside = _Site((None, None, "", "", False, False, False))
        self._stacks: dict[int, _Stack] = {}
        self._open = _Open(self._stacks)
        self._steps = 0

    # ------------------------------------------------------------------ life

    def attach(self) -> None:
        """Wrap what makes, enters and leaves a region."""
        self._patches.wrap(torch.autocast, "__init__", self._around_init)
        self._patches.wrap(torch.autocast, "__enter__", self._around_enter)
        self._patches.wrap(torch.autocast, "__exit__", self._around_exit)

    def detach(self) -> None:
        """Put everything back; what was seen stays."""
        self._patches.undo()

    def stepped(self, steps: int) -> None:
        """Take note that an optimizer has made a step; ``steps`` were made in all."""
        self._steps = steps
        for _, site, start in self._open.stack:
            site.steps_inside = max(site.steps_inside, steps - start)

    # ------------------------------------------------------------------ wrappers: pass everything through

    def _around_init(self, original: Any) -> Any:
        def wrapper(region: Any, *args: Any, **kwargs: Any) -> None:
            original(region, *args, **kwargs)
            frame = sys._getframe(1)
            self._quietly(lambda: self._note_made(region, args, kwargs, frame))

        return wrapper

    def _around_enter(self, original: Any) -> Any:
        def wrapper(region: Any) -> Any:
            result = original(region)
            frame, looking = sys._getframe(1), self._looking()
            self._quietly(lambda: self._note_entered(region, looking, frame))
            return result

        return wrapper

    def _around_exit(self, original: Any) -> Any:
        def wrapper(region: Any, *args: Any, **kwargs: Any) -> Any:
            self._quietly(lambda: self._note_left(region))
            return original(region, *args, **kwargs)

        return wrapper

    # ------------------------------------------------------------------ notes

    def _note_made(
        self, region: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> None:
        if torch.compiler.is_compiling():
            return
        requested = bool(kwargs.get("enabled", args[2] if len(args) > 2 else True))
        if len(self._made) > _REGIONS:
            self._made = {key: made for key, made in self._made.items() if made.ref() is not None}
        made = self._made[id(region)] = _Made(weakref.ref(region), self._code.innermost(frame)[0], requested)
        made.key = self._key(region, made, None)
        self._fresh = [*self._fresh, made][-_REGIONS:]

    @staticmethod
    def _key(region: Any, made: _Made, entered: Spot | None) -> _Key:
        format = str(region.fast_dtype).removeprefix("torch.")
        enabled, cached = bool(region._enabled), bool(region._cache_enabled)
        return made.spot, entered, str(region.device), format, made.requested, enabled, cached

    def _site(self, key: _Key) -> _Site:
        if len(self._sites) < _REGIONS:
            return self._sites.setdefault(key, _Site(key))
        return self._sites.get(key) or _Site(key)

    def _note_entered(self, region: Any, looking: bool, frame: FrameType) -> None:
        made = self._made.get(id(region))
        if made is None or made.ref() is not region:
            made = self._made[id(region)] = _Made(weakref.ref(region), None, bool(region._enabled))
        made.entered = True
        spot, passed = self._code.innermost(frame)
        site = self._site(self._key(region, made, None if _DECORATED in passed else spot))
        site.entered += 1
        site.seen += looking
        site.last_step = self._steps
        self._open.stack.append((weakref.ref(region), site, self._steps))

    def _note_left(self, region: Any) -> None:
        stack = self._open.stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index][0]() is region:
                del stack[index:]
                return

    # ------------------------------------------------------------------ told of the calls of modules

    def called(self, module: nn.Module, frame: FrameType | None) -> None:
        """Look in which thread a layer is called, with the regions that are open there and in others."""
        if not any(self._stacks.values()) or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        weights = (p for p in module._parameters.values() if p is not None and p.requires_grad)
        weight = next((p for p in weights if p.ndim > 1 and p.dtype == torch.float32), None)
        if weight is None or isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            return
        device, own = weight.device.type, self._open.stack
        for _, site, _ in own:
            site.layers_inside += 1
        others = [stack[-1][1] for stack in list(self._stacks.values()) if stack and stack is not own]
        for site in others:
            if torch.is_autocast_enabled(device) or own:
                site.layers_cast += 1
            elif site.key[2] == device:
                site.layers_elsewhere += 1
                site.elsewhere = site.elsewhere or self._code.innermost(outside_of_modules(frame))[0]

    # ------------------------------------------------------------------ told by the operation probe

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Nothing: products write over nothing."""

    def after(self, operation: Operation) -> None:
        """Count a product of a forward pass in the regions around it."""
        if operation.name not in PRODUCTS or operation.backward:
            return
        out = next((t for t in operation.outputs if t.is_floating_point()), None)
        if out is None:
            return
        for made in self._fresh:
            if made.ref() is None and not made.entered and made.key is not None:
                self._site(made.key)  # made, and let go of without having been entered
        self._fresh.clear()
        what = out.device.type, str(out.dtype).removeprefix("torch.")
        trained = operation.graded and any(t.requires_grad for t in operation.inputs)
        sites = [self._outside]
        for _, site, _ in self._open.stack:
            # what lies in an island concerns none of the regions around it
            sites = [site] if site.off else [*(s for s in sites if s is not self._outside), site]
        for site in sites:
            site.products[what] += 1
            site.trained[what] += trained

    def step_begins(self, *_: Any) -> None:
        """Nothing: steps are counted by `stepped`."""

    def fall_asleep(self) -> None:
        """Nothing is kept for operations."""

    # ------------------------------------------------------------------ afterwards

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[Region, ...]:
        """Return what was seen of each region."""
        return tuple(_record(site, place) for site in self._sites.values())

    def outside(self) -> tuple[Product, ...]:
        """Return the products that ran in no region."""
        return _products(self._outside)


def _record(site: _Site, place: Callable[[Spot | None], Place | None]) -> Region:
    spot, entered, device, format, requested, enabled, cached = site.key
    return Region(
        device=device,
        format=format,
        requested=requested,
        enabled=enabled,
        cached=cached,
        place=place(spot),
        entered_at=place(entered),
        entered=site.entered,
        seen=site.seen,
        steps_inside=site.steps_inside,
        last_step=site.last_step,
        products=_products(site),
        layers_elsewhere=0 if site.layers_inside or site.layers_cast else site.layers_elsewhere,
        elsewhere=place(site.elsewhere),
    )


def _products(site: _Site) -> tuple[Product, ...]:
    return tuple(
        Product(device=device, format=format, count=count, trained=site.trained[device, format])
        for (device, format), count in sorted(site.products.items())
    )
