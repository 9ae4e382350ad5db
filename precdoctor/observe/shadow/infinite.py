"""Where inf and NaN are made of finite values, by what, and where they go from there."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from precdoctor.observe.frames import Spot
from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.shadow.look import Look
from precdoctor.observe.shadow.sites import NonFiniteSite
from precdoctor.observe.shadow.table import TooLarge, actual, replay

#: elements of a tensor up to which it is asked for inf and NaN
LARGEST = 1 << 24
#: share of a format's largest number from which a value is there to hide an element
_HIDES = 0.5
_NARROW = (torch.float16, torch.bfloat16)


class InfinityWatch:
    """Follows inf and NaN by the storage that they are in."""

    def __init__(self, is_weight: Callable[[Tensor], bool]) -> None:
        self._is_weight = is_weight
        self.sites: dict[tuple[Spot | None, str, str], NonFiniteSite] = {}
        #: storages that hold inf or NaN, and where those come from; None: given, or put there on purpose
        self._held: dict[int, tuple[Memory, NonFiniteSite | None]] = {}
        #: where the inf or NaN of what was saved comes from, by name and shape
        self._saved: dict[tuple[str, torch.Size], NonFiniteSite] = {}

    def site(self, tensor: Tensor) -> NonFiniteSite | None:
        """Return where the inf or NaN comes from that a tensor's storage was seen to hold."""
        held = self._held.get(storage_key(tensor)) if self._held else None
        return held[1] if held is not None else None

    def forget(self, tensor: Tensor) -> None:
        """Let a storage count as finite: it was written over."""
        if self._held:
            self._held.pop(storage_key(tensor), None)

    def saved(self, named: Iterable[tuple[str, Tensor]], spot: Spot | None) -> None:
        """Take note of tensors that a line saves."""
        for name, tensor in named:
            site = self.site(tensor)
            if site is not None and not is_finite(tensor):
                site.saved_at = site.saved_at or spot
                self._saved[name, tensor.shape] = site

    def loaded(self, named: Iterable[tuple[str, Tensor]], spot: Spot | None) -> None:
        """Take note of tensors that a line loads into a module, as they are or as they come from a file."""
        for name, tensor in named:
            site = self.site(tensor) or self._saved.get((name, tensor.shape))
            if site is not None and not is_finite(tensor):
                site.loaded_at = site.loaded_at or spot

    def sweep(self) -> None:
        """Forget memory that is gone."""
        self._held = {key: held for key, held in self._held.items() if not held[0].gone}

    def clear(self) -> None:
        """Forget what holds inf or NaN."""
        self._held.clear()

    def look(self, look: Look, out: Tensor, exact: Tensor | None) -> None:
        """Find out where the inf or NaN of a result comes from."""
        sources = [t for t in look.inputs if t is not out and not look.is_written(t) and not is_finite(t)]
        sites = [self.site(t) for t in sources]
        if look.is_written(out) and storage_key(out) in self._held and not look.kind.overwrites:
            sources.append(out)  # what it held before it was written into
            sites.append(self.site(out))
        site = next((s for s in sites if s is not None), None)
        if sources:
            if site is None:
                site = self._undefined(look, out, sources)
            elif self._makes_nan(out, sources):
                site.nan_at = site.nan_at or look.spot
                site.nan_passes.add(look.number)
        elif look.has_tensors and not look.has_infinite_number:
            site = self._born(look, out, exact)
        self._held[storage_key(out)] = (Memory(out), site)

    def _makes_nan(self, out: Tensor, sources: Sequence[Tensor]) -> bool:
        return bool(torch.isnan(out).any()) and not any(bool(torch.isnan(t).any()) for t in sources)

    def _undefined(self, look: Look, out: Tensor, sources: Sequence[Tensor]) -> NonFiniteSite | None:
        """Return a site where NaN is made of infinities that are there on purpose."""
        if not any(t is not out for t in sources) or not self._makes_nan(out, sources):
            return None
        if any(self._is_weight(t) for t in sources):
            return None  # that weights are infinite was nobody's purpose, and began elsewhere
        site = self._site(look, out, "undefined")
        site.nan_at = site.nan_at or look.spot
        site.nan_passes.add(look.number)
        return site

    def _born(self, look: Look, out: Tensor, exact: Tensor | None) -> NonFiniteSite | None:
        bad = ~torch.isfinite(out)
        kind, reference = "undefined", self._same_inputs(look, out, exact)
        lost = bad & torch.isfinite(reference) if reference is not None else None
        if lost is not None and bool(lost.any()):
            kind = "overflow"
        elif exact is not None:
            lost = bad & torch.isfinite(exact)
            kind, reference = ("underflow" if bool(lost.any()) else kind), exact
        elif reference is None:
            return None  # nothing to compare with
        site = self._site(look, out, kind)
        site.share = max(site.share, float(bad.double().mean()))
        if bool(torch.isnan(out).any()):
            site.nan_at = site.nan_at or look.spot
            site.nan_passes.add(look.number)
        if kind == "overflow" and lost is not None and reference is not None:
            beyond = reference[lost]
            site.largest = max(site.largest or 0.0, float(beyond.abs().max()))
            site.reduction |= look.kind.reduces or look.squares or look.sums
            site.mask |= self._is_mask(look, out, beyond)
        return site

    def _site(self, look: Look, out: Tensor, kind: str) -> NonFiniteSite:
        key = look.spot, look.kind.name, kind
        site = self.sites.get(key)
        if site is None:
            form = str(out.dtype).removeprefix("torch.")
            site = self.sites[key] = NonFiniteSite(look.spot, look.kind.name, form, kind=kind)
        site.see(look, None, ())
        return site

    def _same_inputs(self, look: Look, out: Tensor, exact: Tensor | None) -> Tensor | None:
        """Return the float64 result of the inputs as they are; the exact one where they were written over."""
        if look.written:
            return exact
        try:
            # nothing of it is kept: what is too large to be followed may be computed again this once
            exact_of = functools.partial(actual, most=LARGEST)
            result = replay(look.operation.func, look.operation.args, look.operation.kwargs, exact_of)
        except (RuntimeError, TypeError, TooLarge):
            return None
        results = [result] if isinstance(result, Tensor) else list(result)
        outputs = look.operation.outputs
        index = next((i for i, t in enumerate(outputs) if t is out), None)
        if index is None or index >= len(results) or results[index].shape != out.shape:
            return None
        found = results[index]
        return found if isinstance(found, Tensor) else None

    @staticmethod
    def _is_mask(look: Look, out: Tensor, beyond: Tensor) -> bool:
        """Tell whether what overflows are values that hide elements: sums with, or casts of, large ones."""
        if bool((beyond > 0).any()):
            return False
        limit = torch.finfo(out.dtype).max
        hides = -_HIDES * limit
        if look.kind.name in ("_to_copy", "copy", "mul"):
            return bool(beyond.min() == beyond.max())
        return any(bool((t < hides).any()) for t in look.inputs if t.dtype == out.dtype or t.numel() > 1)


def is_finite(tensor: Tensor) -> bool:
    """Tell whether all elements are finite, by their sum where that suffices."""
    if not tensor.numel():
        return True
    narrow = tensor.dtype in _NARROW
    tensor = tensor.detach()
    if tensor.element_size() == 1:  # torch does no arithmetic in formats of 8 bits
        tensor = tensor.float()
    total = float(tensor.sum(dtype=torch.float32) if narrow else tensor.sum())
    return math.isfinite(total) or bool(torch.isfinite(tensor).all())
