"""Weights that are loaded, again and again, with their own values rounded to 16 bits.

What a module's weights held before a load (p), what it gave them (v) and what they got the last time (q) say
what training had moved (p - q) and what of that has arrived (v - q). A load counts where v is p, rounded, in
each element that is looked at: targets, averages, the best weights of before and pretrained ones are none.

Training need not have gone on from v: a finer copy may be put back behind it (an evaluation in 16 bits), or
be kept elsewhere. Then what rounding cut off at one load (the rest, p - v) is there again at the next, in
(p - q). How much of it is, least squares say: movements regressed on the rest, and on the movement and the
rest of the round before, which stand for what drives the weights in one direction all the time.

A module may be a new one each time: what is saved of it, rounded, and loaded into the next, is taken for one.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any

import torch
from torch import Tensor, nn

from precdoctor.evidence import Place, Snapshot
from precdoctor.observe.frames import Spot
from precdoctor.observe.watch import Watch, is_plain

_LOW = (torch.bfloat16, torch.float16)
_FULL = (torch.float32, torch.float64)
#: elements that are looked at of a module, and of a tensor at least; tensors of a module
_ELEMENTS, _LEAST, _TENSORS = 1 << 14, 32, 1024
#: modules that are followed; loads looked at of a module that rounds nothing, and in all; round trips counted
_TRACKS, _PLAIN_LOADS, _LOADS, _TRIPS = 8, 16, 4096, 512
#: round trips whose movement is taken together, and of the last ones at least
_WINDOW, _LAST = 8, 3
#: smallest eigenvalue of the correlations of what is regressed on, from which they are told apart
_APART = 1e-4


class _Regression:
    """Least squares of movements on the rest of the round before, and on what came before that."""

    def __init__(self) -> None:
        self._products = torch.zeros(4, 4, dtype=torch.float64)
        self._number = 0

    def add(self, rows: Sequence[Tensor]) -> None:
        """Take in the elements of one round: regressors, and last what they are to explain."""
        table = torch.stack(list(rows))
        self._products += table @ table.T
        self._number += table.shape[1]

    def first(self) -> float | None:
        """Return the upper end of the 95 % interval of the first coefficient; None where it is not known."""
        used = self._products[:3].diagonal() > 0
        if not bool(used[0]):
            return None
        kept = torch.nonzero(used).reshape(-1)
        xx, xy = self._products[kept][:, kept], self._products[kept, 3]
        scale = xx.diagonal().rsqrt()
        correlations = xx * scale * scale[:, None]
        freedom = self._number - len(kept)
        if freedom < 1 or not bool(torch.linalg.eigvalsh(correlations)[0] > _APART):
            return None
        inverse = torch.linalg.inv(xx)
        slopes = inverse @ xy
        unexplained = max(float(self._products[3, 3] - slopes @ xy), 0.0) / freedom
        return float(slopes[0]) + 1.96 * math.sqrt(unexplained * float(inverse[0, 0]))


@dataclass(slots=True, eq=False)
class _Site:
    """A line that loads rounded weights."""

    spot: Spot | None
    trained: str
    format: str
    names: tuple[str, ...]
    numel: int
    steps: tuple[int, int]
    cast: Spot | None = None
    saved: Spot | None = None
    trips: int = 0
    #: loads of something else, in between
    others: int = 0
    moved: int = 0
    put_back: int = 0
    #: EDQ of the movement of a few round trips, and what was lost of it, relative to the weights
    windows: list[tuple[float, float]] = field(default_factory=list)
    regained: _Regression = field(default_factory=_Regression)


@dataclass(slots=True, eq=False)
class _Track:
    """The weights of a module that were loaded with rounded values; of the next module, after a save."""

    tensors: list[weakref.ref[Tensor]]
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    #: what they were given, and what was cut off by that, if it was their own value
    low: Tensor
    rest: Tensor | None
    #: what they had moved then, and what had been cut off before
    movement: Tensor
    rest_before: Tensor
    #: values before they were saved, and as they were saved; the lines that did it
    saved: tuple[Tensor, Tensor, Spot | None, Spot | None] | None = None
    site: _Site | None = None
    #: movement of the window, meant and arrived, and its round trips
    meant: Tensor | None = None
    arrived: Tensor | None = None
    trips: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """What the weights of a module hold that are about to be loaded."""

    names: tuple[str, ...]
    tensors: list[Tensor]
    values: Tensor


class RoundTrips:
    """Follows weights through loads and saves. ``cast_of`` returns the line that cast a tensor."""

    def __init__(self, cast_of: Callable[[Tensor], Spot | None]) -> None:
        self._cast_of = cast_of
        self._tracks: list[_Track] = []
        self._sites: dict[Spot | None, _Site] = {}
        self._loads = 0
        #: loads of a module that rounded nothing
        self._plain: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()

    # ------------------------------------------------------------------ loads

    def before(self, module: nn.Module, state: Any) -> Held | None:
        """Return what a module holds where a load may round it."""
        if not isinstance(state, Mapping) or self._loads >= _LOADS:
            return None
        if self._plain.get(module, 0) >= _PLAIN_LOADS:
            return None
        own: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        if not own.keys() & state.keys():
            own = dict(module.named_buffers(remove_duplicate=False))
        found = [
            (name, tensor)
            for name, tensor in own.items()
            if tensor.dtype in _FULL and is_plain(tensor) and isinstance(state.get(name), Tensor)
        ]
        # norms may be left in float32
        found = ([(name, t) for name, t in found if state[name].dtype in _LOW] or found)[:_TENSORS]
        if not found:
            return None
        self._loads += 1
        names, tensors = zip(*found, strict=True)
        return Held(names, list(tensors), _values(tensors))

    def loaded(self, held: Held, module: nn.Module, state: Any, spot: Spot | None, step: int) -> None:
        """Compare what weights hold now with what they held before, and were given the last time."""
        if any(t.dtype not in _FULL for t in held.tensors):
            return
        now = _values(held.tensors)
        value = state[held.names[0]]
        track = self._track(held)
        dtype = _rounded_to(held.values, now, value.dtype)
        if track is None and (track := self._next(held, now)) is not None:
            assert track.saved is not None
            values, _, line, cast = track.saved
            self._trip(track, values, now, self._site(track, spot, step, cast, line))
            track.tensors = [weakref.ref(t) for t in held.tensors]
        elif track is not None and dtype == track.dtype:
            saved = track.saved or (None, None, None, None)
            cast = self._cast_of(value) or saved[3]
            self._trip(track, held.values, now, self._site(track, spot, step, cast, saved[2]))
        elif track is not None and not torch.equal(now, held.values):
            if value.dtype in _LOW or _grid(now) is not None:
                self._other(track, now)
        elif track is None:
            low = dtype or (value.dtype if value.dtype in _LOW else _grid(now))
            if low is None:
                self._plain[module] = self._plain.get(module, 0) + 1
            else:
                self._begin(held, now, low, None if dtype is None else held.values - now)

    def _track(self, held: Held) -> _Track | None:
        self._tracks = [t for t in self._tracks if t.saved is not None or t.tensors[0]() is not None]
        for track in self._tracks:
            if track.names == held.names and track.tensors[0]() is held.tensors[0]:
                return track
        return None

    def _next(self, held: Held, now: Tensor) -> _Track | None:
        """Return the track whose weights were saved as what is loaded now into another module."""
        shapes = tuple(t.shape for t in held.tensors)
        for track in self._tracks:
            alike = (track.names, track.shapes) == (held.names, shapes)
            if alike and track.saved is not None and torch.equal(track.saved[1], now):
                return track
        return None

    def _begin(self, held: Held, now: Tensor, dtype: torch.dtype, rest: Tensor | None) -> None:
        track = _Track(
            tensors=[weakref.ref(t) for t in held.tensors],
            names=held.names,
            shapes=tuple(t.shape for t in held.tensors),
            dtype=dtype,
            low=now,
            rest=rest,
            movement=torch.zeros_like(now),
            rest_before=torch.zeros_like(now),
        )
        self._tracks = [*self._tracks, track][-_TRACKS:]

    def _other(self, track: _Track, now: Tensor) -> None:
        """Take note of rounded values that are not those of the weights: of before, or of others."""
        if track.site is not None and not torch.equal(now, track.low):
            track.site.others += 1
        track.low, track.rest, track.saved = now, None, None

    # ------------------------------------------------------------------ saves

    def saved(self, named: Iterable[tuple[str, Tensor]], spot: Spot | None) -> None:
        """Look for weights that were loaded rounded, have moved, and are saved rounded again."""
        if not self._tracks:
            return
        by_name: dict[str, list[Tensor]] = {}
        for name, tensor in named:
            by_name.setdefault(name, []).append(tensor)
        for track in self._tracks:
            tensors = [t for ref in track.tensors if (t := ref()) is not None]
            if len(tensors) < len(track.names) or any(t.dtype not in _FULL for t in tensors):
                continue
            candidates = [by_name.get(name, []) for name in track.names]
            rounded = [
                next((c for c in found if c.dtype == track.dtype and c.shape == t.shape), None)
                for t, found in zip(tensors, candidates, strict=True)
            ]
            low = [t for t in rounded if t is not None]
            if len(low) < len(tensors):
                continue
            values, written = _values(tensors), _values(low)
            if not torch.equal(_round(values, track.dtype), written):
                continue
            full = [next((c for c in found if c.dtype in _FULL), None) for found in candidates]
            wide = [t for t in full if t is not None]
            if len(wide) == len(tensors) and torch.equal(_values(wide), values):
                continue  # saved in full as well
            track.saved = (values, written, spot, self._cast_of(low[0]))

    # ------------------------------------------------------------------ round trips

    def _site(
        self, track: _Track, spot: Spot | None, step: int, cast: Spot | None, saved: Spot | None
    ) -> _Site:
        site = self._sites.get(spot)
        if site is None:
            trained, low = (str(d).removeprefix("torch.") for d in (torch.float32, track.dtype))
            numel = sum(shape.numel() for shape in track.shapes)
            site = self._sites[spot] = _Site(spot, trained, low, track.names, numel, (step, step))
        site.cast, site.saved = site.cast or cast, site.saved or saved
        site.steps = (site.steps[0], step)
        return site

    def _trip(self, track: _Track, values: Tensor, now: Tensor, site: _Site) -> None:
        """Count a round trip of weights that held ``values`` before, and hold them rounded now."""
        meant, arrived = values - track.low, now - track.low
        track.saved = None
        if not bool(meant.any()) or site.trips >= _TRIPS:
            return
        if track.site is not site:
            _close(track)
            track.site = site
        site.trips += 1
        site.moved += int((meant != 0).sum())
        site.put_back += int(((meant != 0) & (arrived == 0)).sum())
        if track.rest is not None:
            site.regained.add([track.rest, track.movement, track.rest_before, meant])
        track.meant = meant if track.meant is None else track.meant + meant
        track.arrived = arrived if track.arrived is None else track.arrived + arrived
        track.trips += 1
        track.rest_before = torch.zeros_like(now) if track.rest is None else track.rest
        track.low, track.rest, track.movement = now, values - now, meant
        if track.trips == _WINDOW:
            _close(track)

    # ------------------------------------------------------------------ afterwards

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[Snapshot, ...]:
        """Return the lines that load rounded weights again and again."""
        for track in self._tracks:
            _close(track)
        return tuple(
            Snapshot(
                kind="rounded",
                trained=site.trained,
                format=site.format,
                place=place(site.spot),
                cast=place(site.cast),
                saved=place(site.saved),
                times=site.trips,
                others=site.others,
                first_step=site.steps[0],
                last_step=site.steps[1],
                parameters=site.names,
                numel=site.numel,
                changed_share=site.put_back / site.moved,
                relative_error=sum(lost for _, lost in site.windows),
                edq=median_low([edq for edq, _ in site.windows]),
                regained=site.regained.first(),
            )
            for site in self._sites.values()
            if site.moved and site.windows
        )


def _close(track: _Track) -> None:
    """Judge nothing, but sum up the movement of a window."""
    meant, arrived, site = track.meant, track.arrived, track.site
    if site is not None and meant is not None and arrived is not None and track.trips >= _LAST:
        squares, size = float(meant @ meant), float(track.low.norm())
        if squares and size:
            edq, lost = float(arrived @ meant) / squares, float((meant - arrived).norm()) / size
            site.windows.append((edq, lost))
    track.meant = track.arrived = None
    track.trips = 0


def _values(tensors: Sequence[Tensor]) -> Tensor:
    """Return the elements of tensors that are looked at, in float64, in one row."""
    most = max(_LEAST, _ELEMENTS // max(len(tensors), 1))
    chosen = [Watch.of(t.numel(), most).view(t).reshape(-1).to("cpu", torch.float64) for t in tensors]
    return torch.cat(chosen)


def _round(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).double()


def _rounded_to(values: Tensor, now: Tensor, given: torch.dtype) -> torch.dtype | None:
    """Return the format that values were rounded to, if what weights hold now is that and nothing else."""
    if torch.equal(values, now):
        return None
    formats = (given,) if given in _LOW else _LOW
    return next((dtype for dtype in formats if torch.equal(_round(values, dtype), now)), None)


def _grid(values: Tensor) -> torch.dtype | None:
    """Return the format of 16 bits that holds values exactly, though their tensors are wider."""
    if not bool(values.any()):
        return None
    return next((dtype for dtype in _LOW if torch.equal(_round(values, dtype), values)), None)
