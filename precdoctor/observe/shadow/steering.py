"""Steps that go by a difference which has lost its digits: what is added to a tensor is scaled with it.

Methods without gradients take the difference of two losses, mostly as a number of Python, and step by that
times a constant. What Python makes of a number can't be followed; but it shows in the numbers that tensors
are scaled with afterwards: each time the difference is zero one of them is, and otherwise their signs agree,
or are always opposite.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from precdoctor.observe.frames import Spot
from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.shadow.digits import NARROW, DigitWatch
from precdoctor.observe.shadow.look import Look
from precdoctor.observe.shadow.sites import HURT, CancellationSite
from precdoctor.observe.shadow.table import Shadow, ShadowTable

#: differences that are zero, above and below it, which a number has to go by at least: one that has nothing
#: to do with them, such as a learning rate, is not below zero, or not at these times
_EACH = 2
#: different numbers on one line that are looked at after each difference
_MOST_NUMBERS = 4
#: error of a difference that stays a tensor, beside its exact value, from which steps by it are noise
_NOISE = 0.5
#: tensors from which those that are gone are looked for
_SWEEP = 256
#: operations that scale a tensor with a number, and what the number is called where it is a keyword
_SCALES = {"mul": "", "div": "", "add": "alpha", "sub": "alpha", "addcmul": "value", "addcdiv": "value"}


class _Read(NamedTuple):
    """A value that Python has read."""

    value: float
    exact: float
    spot: Spot | None
    shadow: Shadow | None


@dataclass(slots=True)
class _Link:
    """How a number has gone with a difference, the last times without exception."""

    #: the sign of one times that of the other; 0: not known yet
    orientation: float = 0.0
    #: differences by their sign
    signs: Counter[float] = field(default_factory=Counter)

    def see(self, difference: float, number: float) -> None:
        """Compare the two once more."""
        sign, other = _sign(difference), _sign(number)
        if abs(sign) != abs(other) or self.orientation * sign * other < 0:
            self.signs.clear()
            self.orientation = 0.0
            return
        self.orientation = self.orientation or sign * other
        self.signs[sign] += 1

    @property
    def times(self) -> int:
        """Return how often they have gone together, 0 where that may be chance."""
        return self.signs.total() if min(self.signs[sign] for sign in (-1.0, 0.0, 1.0)) >= _EACH else 0


@dataclass(slots=True)
class _Difference:
    """Differences that are read on the same lines, and the numbers that came after the last one."""

    site: CancellationSite
    value: float = 0.0
    numbers: dict[tuple[Spot | None, str], list[float]] = field(default_factory=dict)
    links: dict[tuple[Spot | None, str, int], _Link] = field(default_factory=dict)

    def settle(self) -> None:
        """Compare the last difference with the numbers that came after it."""
        for (spot, name), numbers in self.numbers.items():
            for index, number in enumerate(numbers):
                link = self.links.setdefault((spot, name, index), _Link())
                link.see(self.value, number)
                if link.times > self.site.steered:
                    self.site.steered, self.site.steered_at = link.times, spot
        self.numbers = {}


class SteeringWatch:
    """Knows what was read last, and compares the numbers that come after it."""

    def __init__(self, table: ShadowTable, digits: DigitWatch) -> None:
        self._table, self._digits = table, digits
        self._last: _Read | None = None
        self._reads = 0
        self._differences: dict[object, _Difference] = {}
        self._current: _Difference | None = None
        #: tensors scaled with a difference that is a tensor itself
        self._scaled: dict[int, tuple[Memory, CancellationSite]] = {}

    def read(self, look: Look, tensor: Tensor) -> None:
        """Take note of a value that Python reads."""
        shadow, value = self._table.get(tensor), float(tensor)
        exact = float(shadow.view(tensor)) if shadow is not None else value
        before, self._last = self._last, _Read(value, exact, look.spot, shadow)
        self._reads += 1
        site = shadow.damage if shadow is not None else None
        if isinstance(site, CancellationSite):
            self._begin(site, site, value)
        elif before is not None:
            self._subtracted(look, before, self._last)

    def scaled(self, look: Look, out: Tensor) -> None:
        """Take note of what a tensor is scaled with, and of what is added to one."""
        if look.kind.name not in _SCALES or out.numel() < 2 or look.is_graded:
            return
        if look.kind.name in ("add", "sub"):
            for tensor in look.inputs:
                memory, site = self._scaled.get(storage_key(tensor), (None, None))
                if memory is not None and site is not None and not memory.gone:
                    site.steered, site.steered_at = site.steered + 1, look.spot
        else:
            self._scale(look, out)
        number = _number(look) if self._current is not None else None
        if number is None or self._current is None:
            return
        numbers = self._current.numbers.setdefault((look.spot, look.kind.name), [])
        if len(numbers) < _MOST_NUMBERS and numbers[-1:] != [number]:
            numbers.append(number)

    def clear(self) -> None:
        """Forget the values at hand."""
        self._last = self._current = None
        self._scaled.clear()

    def _scale(self, look: Look, out: Tensor) -> None:
        """Pass on that a tensor is scaled with a difference."""
        for tensor in look.inputs:
            _, site = self._scaled.get(storage_key(tensor), (None, None))
            shadow = self._table.get(tensor) if tensor.numel() == 1 else None
            if shadow is not None and shadow.error > _NOISE and isinstance(shadow.damage, CancellationSite):
                site = shadow.damage
            if site is None:
                continue
            if len(self._scaled) >= _SWEEP:
                self._scaled = {key: held for key, held in self._scaled.items() if not held[0].gone}
            self._scaled[storage_key(out)] = Memory(out), site

    def _begin(self, key: object, site: CancellationSite, value: float) -> None:
        """Begin to look at the numbers that come after a difference."""
        if self._current is not None:
            self._current.settle()
            known = self._current.site
            if known.steered:  # where Python subtracts, it is worth a word only now
                self._digits.cancellations.setdefault((known.spot, known.operation, False), known)
        self._current = self._differences.setdefault(key, _Difference(site))
        self._current.value = value

    def _subtracted(self, look: Look, before: _Read, last: _Read) -> None:
        """Look at the difference of two values in 16 bits, which Python may take."""
        shadows = (read.shadow for read in (before, last) if read.shadow is not None)
        origin = next((s.origin for s in shadows if s.origin and s.origin.format in NARROW), None)
        if origin is None:
            return
        value, exact = before.value - last.value, before.exact - last.exact
        size = max(abs(before.exact), abs(last.exact))
        error = abs(value - exact) / abs(exact) if exact else math.inf
        if not HURT < error < math.inf or not math.isfinite(value):
            return
        # where both are read on one line, every other difference is one of two steps
        key = before.spot, last.spot, before.spot == last.spot and self._reads % 2
        known = self._differences.get(key)
        form = str(origin.format).removeprefix("torch.")
        site = known.site if known is not None else CancellationSite(last.spot, "sub", form)
        site.see(look, origin, ())
        off = max(abs(r.value - r.exact) for r in (before, last)) / size
        site.lost(before=off, error=error, share=1.0, remaining=abs(exact) / size)
        self._begin(key, site, value)


def _sign(number: float) -> float:
    return float(number > 0) - float(number < 0)


def _number(look: Look) -> float | None:
    """Return the number of Python that an operation scales a tensor with, if there is one."""
    keyword, args = _SCALES[look.kind.name], look.operation.args
    number = look.operation.kwargs.get(keyword) if keyword else args[1] if len(args) > 1 else None
    if isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number):
        return float(number)
    return None
