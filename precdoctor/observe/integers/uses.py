"""Where integers that lost digits go: followed from operation to operation to what depends on them.

A tensor is tagged, by its memory, with the largest error in it; operations pass the tag on with the error
that their result has, until something is done that depends on it: a sine, a remainder, a comparison.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from precdoctor.evidence import IntegerUse, LostIntegers, Place
from precdoctor.observe.autocast import PRODUCTS
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.integers.lost import MOST, Loss
from precdoctor.observe.integers.means import errors, mean_error
from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.models import Models
from precdoctor.observe.probe.forwards import innermost_module
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.watch import is_plain

#: sites kept, and tensors that are followed
_SITES, _TAGS = 256, 20_000
#: largest error of a difference that is told, as a share of its spread
_MOST_SHARE = 1000.0
#: smaller tensors are not compared with one another
FEWEST = 8


def named(text: str) -> frozenset[str]:
    """Return the names of operations, and of those in place."""
    return frozenset(f"aten::{name}{suffix}" for name in text.split() for suffix in ("", "_"))


#: results that hold the same numbers
_SAME = named(
    "_to_copy copy clone contiguous index index_select gather repeat expand roll flip cat stack where "
    "masked_fill lift_fresh alias constant_pad_nd repeat_interleave take masked_select neg abs round clamp "
    "_unsafe_view view_copy squeeze_copy unsqueeze_copy triu tril"
)
SUMS = named("add sub rsub")
FACTORS = named("mul div")
_WAVES = named("sin cos tan sinc polar")
REMAINDERS = named("remainder fmod")
_ARITHMETIC = SUMS | FACTORS | REMAINDERS | _WAVES | named("nan_to_num log log1p sqrt pow tanh sigmoid")
_COMPARED = named("eq ne lt le gt ge")
#: look-ups, and the place of the index among the arguments
_LOOKUPS = {
    "aten::embedding": 1,
    "aten::embedding_bag": 1,
    "aten::_embedding_bag": 1,
    "aten::index": 1,
    "aten::index_put_": 1,
    "aten::index_select": 2,
    "aten::gather": 2,
    "aten::scatter": 2,
    "aten::scatter_": 2,
    "aten::scatter_add_": 2,
    "aten::index_add_": 2,
    "aten::nll_loss_forward": 1,
    "aten::nll_loss2d_forward": 1,
}
#: operations that give a tensor other values
_SETS = named("zero fill normal uniform random bernoulli exponential")


@dataclass(slots=True, eq=False)
class Site:
    """What one line did to numbers."""

    how: str
    before: str
    format: str
    spot: Spot | None
    module: weakref.ref[nn.Module] | None = None
    name: str = ""
    times: int = 0
    sequence: bool = False
    worst: Loss | None = None
    uses: dict[tuple[str, Spot | None], IntegerUse] = field(default_factory=dict)
    spots: dict[tuple[str, Spot | None], Spot | None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Tag:
    """A tensor that is followed."""

    memory: Memory
    #: where digits were lost; None: nowhere yet, but the numbers are multiples of ``unit``
    site: Site | None
    #: largest error
    error: float = 0.0
    unit: float = 0.0
    #: made integers again
    index: bool = False
    #: error of each number, laid out as the tensor's memory; None where it is not known
    off: Tensor | None = None


class IntegerTrails:
    """The tags, and the lines where digits were lost."""

    def __init__(self, code: UserCode) -> None:
        self._code = code
        self._sites: dict[tuple[str, Spot | None, str], Site] = {}
        self._tags: dict[int, Tag] = {}

    def __bool__(self) -> bool:
        return bool(self._tags)

    def of(self, tensor: Tensor) -> Tag | None:
        """Return the tag of a tensor that is followed."""
        tag = self._tags.get(storage_key(tensor)) if self._tags else None
        return tag if tag is not None and not tag.memory.gone else None

    def put(self, tensor: Tensor, site: Site | None, error: float, unit: float, index: bool = False) -> None:
        """Follow a tensor from here."""
        if is_plain(tensor) and len(self._tags) < _TAGS:
            self._tags[storage_key(tensor)] = Tag(Memory(tensor), site, error, unit, index)

    def rounded(self, exact: Tensor, tensor: Tensor, site: Site, loss: Loss, unit: float) -> None:
        """Follow a tensor that holds ``exact`` rounded, with the error of each number if it is a sequence."""
        self.put(tensor, site, loss.error, unit)
        tag = self._tags.get(storage_key(tensor))
        if tag is not None and loss.sequence and tensor.numel() <= MOST:
            tag.off = errors(exact, tensor)

    def drop(self, tensor: Tensor) -> None:
        """Follow a tensor no longer."""
        self._tags.pop(storage_key(tensor), None)

    def forget(self) -> None:
        """Forget what is gone."""
        self._tags = {key: tag for key, tag in self._tags.items() if not tag.memory.gone}

    def note(self, operation: Operation, how: str, before: str, dtype: torch.dtype, loss: Loss) -> Site:
        """Take note that a line lost digits."""
        spot = self._code.innermost(operation.frame)[0]
        format = str(dtype).removeprefix("torch.")
        key = (how, spot, format)
        site = self._sites.get(key)
        if site is None:
            site = Site(how, before, format, spot)
            if len(self._sites) < _SITES:
                self._sites[key] = site
        module = innermost_module(operation.frame)
        if site.module is None and module is not None:
            site.module = weakref.ref(module)
        site.times += 1
        site.sequence |= loss.sequence
        if site.worst is None or loss.changed + loss.overflowed >= site.worst.changed + site.worst.overflowed:
            site.worst = loss
        return site

    # ------------------------------------------------------------------ where they go

    def follow(self, operation: Operation, name: str, inputs: list[Tensor], tags: list[Tag | None]) -> None:
        """Pass tags on to the results of an operation, or see what it uses them for."""
        outputs = operation.outputs
        tag = max((t for t in tags if t is not None), key=lambda t: (t.site is not None, t.error))
        others = [t for t, known in zip(inputs, tags, strict=True) if known is None]
        infinite = tag.site is not None and tag.site.worst is not None and tag.site.worst.overflowed
        if infinite and tag.site is not None and (name in _ARITHMETIC or name in PRODUCTS):
            self.use(operation, tag.site, "infinity", float("inf"))
        if name in _LOOKUPS and self._looked_up(operation, name):
            return
        if name in _SETS:
            self.drop(inputs[0])
        elif name in _SAME:
            for out in outputs:
                if self.of(out) is not tag or name.endswith("_"):  # a view is followed already
                    self.put(out, tag.site, tag.error, tag.unit, tag.index)
        elif name in FACTORS:
            self._multiplied(operation, name, tags, tag, others)
        elif name in SUMS:
            self._added(operation, name, inputs, tags, tag, others)
        elif name in PRODUCTS and tag.site is not None:
            self._product(operation, tag, inputs, tags)
        elif tag.site is not None and not tag.index:
            if name in _WAVES:
                self.use(operation, tag.site, "trigonometric", tag.error)
            elif name in REMAINDERS:
                period = smallest(operation)
                self.use(operation, tag.site, "periodic", tag.error / period if period else 0.0)
                self.put(outputs[0], tag.site, tag.error, tag.unit)
            elif name in _COMPARED and len(inputs) == 2 and min(t.numel() for t in inputs) >= FEWEST:
                self.use(operation, tag.site, "comparison", tag.error)

    def _looked_up(self, operation: Operation, name: str) -> bool:
        """Take note of an index among the tagged; tell whether there was one."""
        place = _LOOKUPS[name]
        found = False
        for tensor in tensors_in(operation.args[place : place + 1]):
            tag = self.of(tensor) if is_plain(tensor) else None
            if tag is not None and tag.index and tag.site is not None:
                self.use(operation, tag.site, "index", tag.error)
                found = True
        return found

    def _multiplied(
        self,
        operation: Operation,
        name: str,
        tags: list[Tag | None],
        tag: Tag,
        others: list[Tensor],
    ) -> None:
        out = operation.outputs[0]
        divided = name.startswith("aten::div")
        if not divided:
            others = [t for t in others if not _is_mask(t)]
        numbers = [a for a in operation.args if isinstance(a, (int, float)) and not isinstance(a, bool)]
        constants = [t for t in others if (not t.requires_grad or t.is_leaf) and not _is_data(t, out)]
        if (
            len(constants) < len(others)
            or (divided and tags[0] is None)
            or operation.kwargs.get("rounding_mode")
        ):
            self.drop(out)  # a factor of data: a relative error, as small as any other
            return
        factor = 1.0
        for value in [*numbers, *(float(t.double().abs().max()) if t.numel() else 0.0 for t in constants)]:
            factor *= abs(float(value))
        if divided and constants:
            factor = smallest(operation)
        if not factor or factor == float("inf"):
            self.drop(out)
            return
        scale = 1 / factor if divided else factor
        same = not any(t.numel() > 1 for t in constants)  # by one number: still multiples of something
        if tag.site is not None or same:
            self.put(out, tag.site, tag.error * scale, tag.unit * scale if same else 0.0, tag.index)

    def _added(
        self,
        operation: Operation,
        name: str,
        inputs: list[Tensor],
        tags: list[Tag | None],
        tag: Tag,
        others: list[Tensor],
    ) -> None:
        out = operation.outputs[0]
        if tag.site is not None and any(t.requires_grad for t in others):
            if operation.graded:  # what is not trained with is an evaluation's, or a plot's
                self.use(operation, tag.site, "bias", tag.error)
            return
        if tag.site is not None and "add" not in name and out.numel() > 1 and out is not operation.args[0]:
            spread = float(out.double().std())
            both = sum(t is not None and t.site is not None for t in tags) > 1
            source = max(float(t.abs().max()) for t, known in zip(inputs, tags, strict=True) if known is tag)
            share = min(tag.error / spread, _MOST_SHARE) if spread else _MOST_SHARE
            if both:
                self.use(operation, tag.site, "difference", share)
            elif float(out.abs().max()) <= source / 8:
                self.use(operation, tag.site, "offset", share)
        if any(_is_data(t, out) for t in others):
            self.drop(out)
        else:
            self.put(out, tag.site, tag.error, tag.unit, tag.index)

    def _product(self, operation: Operation, tag: Tag, inputs: list[Tensor], tags: list[Tag | None]) -> None:
        others = [t for t, known in zip(inputs, tags, strict=True) if known is None]
        if tag.site is None or tag.index or self._mean(operation, tag, inputs, tags):
            return
        if any(t.requires_grad for t in others):
            if operation.graded:
                self.use(operation, tag.site, "feature", tag.error)
        elif len(others) == 1 and others[0].dim() >= 2:
            rows = others[0].detach().abs().double().sum(-1 if tags[0] is None else -2)
            self.put(operation.outputs[0], tag.site, tag.error * float(rows.max()), 0.0)

    def _mean(self, operation: Operation, tag: Tag, inputs: list[Tensor], tags: list[Tag | None]) -> bool:
        """Take note of means of a sequence by probabilities; tell whether these are some."""
        if tag.site is None or tag.off is None or not tag.unit or len(inputs) != 2 or all(tags):
            return False
        rounded = inputs[0 if tags[0] is tag else 1]
        wrong = mean_error(operation.name, inputs[0], inputs[1], tag.off, rounded)
        if wrong is not None:
            self.use(operation, tag.site, "mean", wrong / tag.unit)
        return wrong is not None

    def use(self, operation: Operation, site: Site, kind: str, error: float) -> None:
        """Take note of something that depends on the numbers."""
        spot = self._code.innermost(operation.frame)[0]
        known = site.uses.get((kind, spot))
        times = known.times if known is not None else 0
        largest = max(error, known.error if known is not None else 0.0)
        site.uses[kind, spot] = IntegerUse(kind=kind, error=largest, times=times + 1)
        module = innermost_module(operation.frame)
        if site.module is None and module is not None:
            site.module = weakref.ref(module)

    # ------------------------------------------------------------------ afterwards

    def look(self, models: Models) -> None:
        """Note the names of modules while they live."""
        wanted = [s for s in self._sites.values() if s.uses and not s.name and s.module is not None]
        if not wanted:
            return
        names = models.module_names()
        for site in wanted:
            module = site.module() if site.module is not None else None
            site.name = names.get(id(module), "") if module is not None else ""

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[LostIntegers, ...]:
        """Return what was lost and used."""
        return tuple(_record(site, place) for site in self._sites.values() if site.uses and site.worst)


def _record(site: Site, place: Callable[[Spot | None], Place | None]) -> LostIntegers:
    worst = site.worst
    assert worst is not None
    uses = (
        IntegerUse(kind=use.kind, place=place(spot), error=use.error, times=use.times)
        for (_, spot), use in site.uses.items()
    )
    return LostIntegers(
        how=site.how,
        before=site.before,
        format=site.format,
        place=place(site.spot),
        module=site.name,
        sequence=site.sequence,
        one_per_row=worst.one_per_row,
        times=site.times,
        numbers=worst.numbers,
        distinct_before=worst.distinct_before,
        distinct_after=worst.distinct_after,
        changed_share=worst.changed / worst.numbers,
        largest=worst.largest,
        error=worst.error,
        overflowed=worst.overflowed,
        uses=tuple(uses),
    )


def _is_data(tensor: Tensor, result: Tensor) -> bool:
    """Tell whether a tensor has a number of its own for each element of a result, as no constant has."""
    held = tensor.untyped_storage().nbytes() // tensor.element_size()
    return held >= result.numel() > 1


def _is_mask(tensor: Tensor) -> bool:
    """Tell whether all numbers are 0 or 1: what they multiply stays what it is, or is left out."""
    if tensor.requires_grad:
        return False
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all())


def smallest(operation: Operation) -> float:
    """Return the smallest magnitude of a divisor other than 0."""
    divisor = operation.args[1] if len(operation.args) > 1 else 0.0
    if isinstance(divisor, Tensor):
        sizes = divisor.detach().abs()
        sizes = sizes[sizes > 0]
        return float(sizes.min()) if sizes.numel() else 0.0
    return abs(float(divisor))
