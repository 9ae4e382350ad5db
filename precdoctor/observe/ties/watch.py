"""Weights that were one parameter in two places: what stands in these places where optimizer steps begin."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor, nn

from precdoctor.evidence import Place, Tie
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.models import Models, stripped
from precdoctor.observe.provenance.recorder import Provenance
from precdoctor.observe.ties.homes import Homes, Side, Tied
from precdoctor.observe.watch import Watch, is_plain

#: elements compared
_SAMPLE = 4096

#: qualified name of each module by identities: the module's, then the outermost one's
_Tree = dict[int, dict[int, str]]


class _Here(NamedTuple):
    """A place of a tie that is part of a model now."""

    side: Side
    module: nn.Module
    prefix: str


class _Standing(NamedTuple):
    """A tensor in a place."""

    tensor: Tensor
    kind: str
    #: qualified name, and the name in its module
    name: str
    own_name: str


@dataclass(slots=True, eq=False)
class _Apart:
    """Two tensors that were one, as they were first seen apart."""

    tensor: weakref.ref[Tensor]
    made: Spot | None
    spot: Spot | None
    watch: Watch
    kept: Tensor
    apart: Tensor
    record: Tie


class TieWatch:
    """Compares what stands in the places of tied parameters."""

    def __init__(self, code: UserCode, origins: Provenance | None) -> None:
        self.homes = Homes(code)
        self._origins = origins
        self._apart: dict[tuple[Tied, Side], _Apart] = {}
        self._looked = False

    def look(self, models: Models, step: int) -> None:
        """Compare, where a step begins; ``step`` counts those made."""
        if self._looked and not self.homes.ties:
            return
        tree: _Tree = {}
        for root, prefix, module in models.walk():
            tree.setdefault(id(module), {})[id(root)] = prefix
            if not self._looked:
                self.homes.meet(module)
        self._looked = True
        before, self._apart = self._apart, {}
        for tied in self.homes.ties:
            for side, kept, apart in _pairs(tied, tree):
                kept, apart = _named(kept, models), _named(apart, models)
                known = before.get((tied, side))
                if known is None or known.tensor() is not apart.tensor:
                    known = self._first_sight(tied, side, kept, apart, step)
                self._apart[tied, side] = _later(known, kept, apart, step)

    def _first_sight(self, tied: Tied, side: Side, kept: _Standing, apart: _Standing, step: int) -> _Apart:
        watch = Watch.of(kept.tensor.numel(), _SAMPLE)
        one, other = _sample(watch, kept.tensor), _sample(watch, apart.tensor)
        inside = side.node.ref() is side.node.now()
        event = side.node.events.get(apart.own_name) if inside else side.node.replaced()
        how, broken = ("", None) if event is None else (event.how, None)
        if event is None and self._origins is not None:  # past the hooks: by a conversion, or into a table
            cast = self._origins.cast(apart.tensor) if inside else None
            how = "" if cast is None else cast.how
            broken = None if cast is None else cast.place
            broken = broken if inside else self._origins.creation(apart.tensor)
        return _Apart(
            tensor=weakref.ref(apart.tensor),
            made=tied.made,
            spot=None if event is None else event.spot,
            watch=watch,
            kept=one,
            apart=other,
            record=Tie(
                kept=kept.name,
                apart=apart.name,
                numel=apart.tensor.numel(),
                kind=apart.kind,
                format=str(apart.tensor.dtype).removeprefix("torch."),
                extra_bytes=apart.tensor.numel() * apart.tensor.element_size(),
                how=how,
                broken=broken,
                similarity=_correlation(one, other),
                first_step=step,
                distance_first=_ratio(other - one, one),
            ),
        )

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[Tie, ...]:
        """Return the ties that were broken when they were last seen."""
        return tuple(
            replace(
                apart.record,
                made=place(apart.made),
                broken=place(apart.spot) or apart.record.broken,
            )
            for apart in self._apart.values()
        )


def _pairs(tied: Tied, tree: _Tree) -> Iterator[tuple[Side, _Standing, _Standing]]:
    """Yield the places of a tie where another tensor stands, with what stands in the place that kept it."""
    places = list(_in_one_model(tied, tree))
    standing = [(here, found) for here in places if (found := _under_its_name(here)) is not None]
    kept = next(
        (pair for pair in standing if id(pair[1].tensor) == tied.key), standing[0] if standing else None
    )
    if kept is None or not is_plain(kept[1].tensor):
        return
    for here in places:
        apart = _another(here, kept[1].tensor) if here.side is not kept[0].side else None
        if apart is not None:
            yield here.side, kept[1], apart


def _in_one_model(tied: Tied, tree: _Tree) -> Iterator[_Here]:
    """Yield the places that belong to the same model, the one with most of them."""
    found = [(side, module) for side in tied.sides if (module := side.node.now()) is not None]
    roots = Counter(root for _, module in found for root in tree.get(id(module), ()))
    for root, _ in roots.most_common(1):
        for side, module in found:
            if root in tree.get(id(module), ()):
                yield _Here(side, module, tree[id(module)][root])


def _under_its_name(here: _Here) -> _Standing | None:
    name = here.side.name
    return next((s for s in _tensors(here.module, here.prefix) if s.own_name == name), None)


def _another(here: _Here, kept: Tensor) -> _Standing | None:
    """Return the tensor that stands in a place instead of the kept one; None where that is there, or none.

    Where the module is still the one that was tied: a tensor of the same name, or a buffer. In a module
    that has taken its place: whatever is most like the kept one.
    """
    original = here.module is here.side.node.ref()
    own = list(_tensors(here.module, here.prefix))
    hidden = here.module._modules.get("parametrizations")
    below = [*own, *([] if hidden is None else _below(hidden, ""))]
    if not original:
        below = list(_below(here.module, here.prefix))
    if any(_is_same(standing.tensor, kept) for standing in below):
        return None
    alike = [s for s in (own if original else below) if s.tensor.shape == kept.shape and is_plain(s.tensor)]
    named = _under_its_name(here)
    if named is not None and any(standing.tensor is named.tensor for standing in alike):
        return named
    if original:
        alike = [standing for standing in alike if standing.kind == "buffer"]
    watch = Watch.of(kept.numel(), _SAMPLE)
    one = _sample(watch, kept)
    return max(alike, key=lambda s: _correlation(one, _sample(watch, s.tensor)) or 0.0, default=None)


def _tensors(module: nn.Module, prefix: str) -> Iterator[_Standing]:
    for kind, table in (("parameter", module._parameters), ("buffer", module._buffers)):
        for name, tensor in table.items():
            if tensor is not None and not tensor.is_complex():
                yield _Standing(tensor, kind, f"{prefix}.{name}" if prefix else name, name)


def _below(module: nn.Module, prefix: str) -> Iterator[_Standing]:
    """Yield the tensors of a module and of those inside it, each module once."""
    todo, seen = [(module, prefix)], {id(module)}
    while todo:
        module, prefix = todo.pop()
        yield from _tensors(module, prefix)
        for name, child in module._modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                todo.append((child, f"{prefix}.{name}" if prefix else name))


def _is_same(tensor: Tensor, kept: Tensor) -> bool:
    if tensor is kept:
        return True
    if not is_plain(tensor):
        return False
    same_memory = tensor.untyped_storage()._cdata == kept.untyped_storage()._cdata
    return same_memory and tensor.storage_offset() == kept.storage_offset()


def _named(standing: _Standing, models: Models) -> _Standing:
    owner = models.owner(standing.tensor)
    return standing._replace(name=owner.name if owner is not None else stripped(standing.name))


def _later(known: _Apart, kept: _Standing, apart: _Standing, step: int) -> _Apart:
    one, other = _sample(known.watch, kept.tensor), _sample(known.watch, apart.tensor)
    went, followed = one - known.kept, other - known.apart
    known.record = replace(
        known.record,
        kept=kept.name,
        apart=apart.name,
        trainable=apart.tensor.requires_grad,
        last_step=step,
        distance_last=_ratio(other - one, known.kept),
        kept_moved=_ratio(went, known.kept),
        apart_moved=_ratio(followed, known.kept),
        difference_moved=_ratio(followed - went, known.kept),
    )
    return known


def _sample(watch: Watch, tensor: Tensor) -> Tensor:
    return watch.view(tensor).reshape(-1).cpu().double().clone()


def _correlation(one: Tensor, other: Tensor) -> float | None:
    one, other = one - one.mean(), other - other.mean()
    norm = float(one.norm() * other.norm())
    return float(one @ other) / norm if 0 < norm < float("inf") else None


def _ratio(difference: Tensor, kept: Tensor) -> float:
    norm = float(kept.norm())
    return float(difference.norm()) / norm if norm else 0.0
