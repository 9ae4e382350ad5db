"""Quantizers of weights: what the forward pass uses beside the weight, and whether gradient comes back.

Fed by `Lineage` while the operation probe is awake. Measures over a sample of the elements; the statistics of
the clipping look at the whole tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from precdoctor.evidence import Fidelity, Place, Quantizer
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.graph import route
from precdoctor.observe.lineage.lineage import Lineage, Use
from precdoctor.observe.lineage.made import CannotRemake, Entry, Made, Root, parents, remade
from precdoctor.observe.models import Models
from precdoctor.observe.quantizers.fidelity import CODES, fidelity, sample
from precdoctor.observe.watch import Watch, is_plain

#: elements of a weight that are looked at
_SAMPLE = 1 << 14
#: parameters larger than this are not quantized again, to see whether what is used is stale
_REMAKE = 1 << 24


@dataclass(slots=True)
class _Seen:
    """What is known of one weight."""

    root: Root
    watch: Watch
    #: optimizer step at which the weight itself, not rounded, was last used
    plain: int = -1
    kind: str = ""
    format: str = ""
    route: str = ""
    zero_nodes: set[str] = field(default_factory=set)
    entry: Entry | None = None
    rounding: Spot | None = None
    used_at: Spot | None = None
    function: str = ""
    steps: set[int] = field(default_factory=set)
    first: Fidelity | None = None
    last: Fidelity | None = None
    age: int = 0
    stale: float | None = None
    #: a cast, and the weight when it was first used; then the steps in which it was used again after the
    #: weight had been written to, where, and the largest share of it that was wrong then
    cast: tuple[Made, Tensor] | None = None
    outdated: set[int] = field(default_factory=set)
    outdated_at: Spot | None = None
    outdated_share: float = 0.0
    weights: tuple[Tensor, Tensor] | None = None
    used: tuple[Tensor, Tensor] | None = None
    #: step and codes at first sight and at the last two
    codes: list[tuple[int, Tensor]] = field(default_factory=list)
    first_codes: tuple[int, Tensor] | None = None
    levels: int = 0
    flips: list[float] = field(default_factory=list)
    undone: list[float] = field(default_factory=list)
    #: gradient of the used values since the last step
    arriving: Tensor | None = None
    #: the weight was quantized after a transposition
    turned: bool = False
    #: shares other than zero of the weight's gradient, and of that of the used values; their cosine
    own_density: list[float] = field(default_factory=list)
    used_density: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    rewritten: Spot | None = None
    random: bool = False
    name: str = ""
    buffer: Made | None = None
    was_trained: bool = False
    carries_gradient: bool = False


class QuantizerWatch:
    """Collects what `Lineage` tells of weights that are used in another form; see the module's docstring."""

    def __init__(self, code: UserCode) -> None:
        self._code = code
        self._seen: dict[Root, _Seen] = {}
        self.lineage = Lineage(
            code, on_use=self._on_use, on_rounding=self._on_rounding, on_rewrite=self._on_rewrite
        )

    # ------------------------------------------------------------------ told by the probe

    def before(self, func: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Pass on to the lineage."""
        self.lineage.before(func, args, kwargs)

    def after(self, operation: object) -> None:
        """Pass on to the lineage."""
        self.lineage.after(operation)  # type: ignore[arg-type]

    def step_begins(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Compare the gradient that arrived at the used values with the weight's."""
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for seen in self._seen.values():
            parameter = seen.root.alive()
            if parameter is None or id(parameter) not in stepped:
                continue
            seen.was_trained = seen.was_trained or parameter.grad is not None
            arriving, seen.arriving = seen.arriving, None
            gradient = parameter.grad
            if gradient is None or not is_plain(gradient) or not seen.steps:
                continue
            own = sample(seen.watch, gradient)
            seen.own_density.append(_density(own))
            if arriving is not None:
                seen.used_density.append(_density(arriving))
                seen.cosine.append(float(torch.nn.functional.cosine_similarity(own, arriving, dim=0)))
        self.lineage.step_begins(optimizer, step)

    def fall_asleep(self) -> None:
        """Let go of what only neighbouring steps have in common."""
        self.lineage.fall_asleep()
        for seen in self._seen.values():
            seen.arriving = seen.cast = None

    # ------------------------------------------------------------------ told by the lineage

    def _on_rounding(self, made: Made, tensor: Tensor) -> None:
        numel = max((root.numel for root in made.roots), default=0)
        if numel // 2 <= tensor.numel() <= 2 * numel:
            flat = (tensor.int_repr() if tensor.is_quantized else tensor.detach()).reshape(-1)
            flat = flat.view(torch.uint8) if flat.element_size() == 1 else flat.to(torch.float64)
            made.codes = Watch.of(flat.numel(), _SAMPLE).view(flat).reshape(-1).clone()

    def _on_rewrite(self, root: Root, made: Made, spot: Spot | None) -> None:
        seen = self._of(root)
        seen.rewritten, seen.random = spot, made.random

    def _of(self, root: Root) -> _Seen:
        if root not in self._seen:
            self._seen[root] = _Seen(root, Watch.of(root.numel, _SAMPLE))
        return self._seen[root]

    def _on_use(self, use: Use) -> None:
        seen, made = self._of(use.root), use.made
        if made is None or made.values == "scale" or (made.values == "continuous" and made.narrow is None):
            self._note_plain(seen, use)
            return
        kind = "quantizer" if made.values == "rounded" else "cast"
        if kind == "cast":
            self._note_cast(seen, use, made)
        inside = not use.operation.graded and use.inside_function
        if not use.operation.graded and not inside:  # an evaluation
            return
        if use.tensor.requires_grad and kind == "quantizer":
            use.tensor.register_hook(partial(self._arrive, seen, _layout(use.tensor), made))  # type: ignore[no-untyped-call]
        if use.step in seen.steps or (seen.kind == "quantizer" and kind == "cast"):
            return
        source = made.rounded if made.rounded is not None else made
        age = use.step - source.step
        if kind == "cast" and seen.steps and not age:
            seen.steps.add(use.step)
            return
        if not seen.route or seen.route == "cut":  # a straight-through estimator may be switched on later
            seen.route = "custom function" if inside else self._route(seen, use, seen.root.alive())
        self._note(seen, use, made, kind, age)

    def _note_cast(self, seen: _Seen, use: Use, made: Made) -> None:
        """Compare a cast that is used again with the weight as it is by now."""
        parameter = seen.root.alive()
        if parameter is None or seen.root.numel > _REMAKE:
            return
        weight = sample(seen.watch, parameter)
        if not bool(torch.isfinite(weight).all()):
            return  # NaN is not equal to itself
        if seen.cast is None or seen.cast[0] is not made or made.step != use.step:
            seen.cast = made, weight
            return
        if torch.equal(seen.cast[1], weight):
            return
        whole, _ = _as_parameter(use.tensor, made, seen.root)
        anew = weight.to(whole.dtype).to(weight.dtype)
        share = float((sample(seen.watch, whole) != anew).double().mean())
        if share > 0:
            seen.outdated.add(use.step)
            seen.outdated_at = seen.outdated_at or self._code.innermost(use.operation.frame)[0]
            seen.outdated_share = max(seen.outdated_share, share)

    def _note_plain(self, seen: _Seen, use: Use) -> None:
        """Note that the weight itself is used, or that it is used without its history."""
        if use.tensor.requires_grad or not use.operation.graded:
            seen.plain = use.step
        elif not seen.kind:
            spot = self._code.innermost(use.operation.frame)[0]
            seen.kind, seen.route, seen.used_at = "detached", "cut", spot
            seen.format = str(use.tensor.dtype).removeprefix("torch.")
            if use.made is not None:
                seen.entry = use.made.entry
        if seen.kind == "detached":
            seen.steps.add(use.step)

    def _note(self, seen: _Seen, use: Use, made: Made, kind: str, age: int) -> None:
        seen.kind, seen.format = kind, str(use.tensor.dtype).removeprefix("torch.")
        seen.age = max(seen.age, age)
        if not seen.steps:
            seen.entry = made.entry
            seen.rounding = made.rounded.spot if made.rounded is not None else None
            seen.used_at = self._code.innermost(use.operation.frame)[0]
            seen.function = _function(made.entry)
        seen.steps.add(use.step)
        parameter = seen.root.alive()
        if parameter is None:
            seen.buffer, seen.carries_gradient = made, seen.carries_gradient or use.carries_gradient
            return
        if any(2 * r.numel >= seen.root.numel for r in made.roots if r is not seen.root):
            return  # several parameters in one: their own values say nothing of its error
        weight = sample(seen.watch, parameter)
        whole, seen.turned = _as_parameter(use.tensor, made, seen.root)
        used = sample(seen.watch, whole)
        found = fidelity(use.step, parameter.detach(), whole, seen.watch)
        seen.first, seen.last = seen.first or found, found
        seen.weights = (weight, weight) if seen.weights is None else (seen.weights[0], weight)
        seen.used = (used, used) if seen.used is None else (seen.used[0], used)
        self._note_codes(seen, use.step, made)
        if age and seen.root.numel <= _REMAKE and (kind == "quantizer" or seen.stale is None):
            self._note_stale(seen, made, used)

    def _route(self, seen: _Seen, use: Use, parameter: Tensor | None) -> str:
        if parameter is None:
            return "buffer"
        if not use.tensor.requires_grad:
            return "cut"
        found, seen.zero_nodes = route(use.tensor, parameter)
        return found

    def _note_codes(self, seen: _Seen, step: int, made: Made) -> None:
        codes = made.codes
        if codes is None:
            return
        if seen.first_codes is None:
            seen.first_codes = (step, codes)
        seen.levels = max(seen.levels, int(torch.unique(codes).numel()))
        if seen.codes and seen.codes[-1][0] == step - 1 and seen.codes[-1][1].shape == codes.shape:
            before = seen.codes[-1][1]
            flipped = codes != before
            seen.flips.append(float(flipped.double().mean()))
            if len(seen.codes) > 1 and seen.codes[-2][0] == step - 2 and bool(flipped.any()):
                seen.undone.append(float((codes == seen.codes[-2][1])[flipped].double().mean()))
        seen.codes = [*seen.codes[-1:], (step, codes)]

    def _note_stale(self, seen: _Seen, made: Made, used: Tensor) -> None:
        devices = [used.device] if used.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                fresh, _ = _as_parameter(remade(made), made, seen.root)
        except (CannotRemake, RuntimeError):
            return
        share = float((sample(seen.watch, fresh) != used).double().mean())
        seen.stale = max(seen.stale or 0.0, share)

    def _arrive(self, seen: _Seen, layout: tuple[tuple[int, ...], ...], made: Made, gradient: Tensor) -> None:
        """Note the gradient of the used values. Called by autograd: nothing may go wrong here."""
        with suppress(Exception), torch.no_grad():
            size, stride, (offset,) = layout
            flat = gradient.new_zeros(max(math.prod(made.size), seen.root.numel))
            flat.as_strided(size, stride, offset).copy_(gradient)
            if flat.numel() != seen.root.numel:
                return
            whole = flat.reshape(seen.root.shape[::-1]).t() if seen.turned else flat.reshape(seen.root.shape)
            arrived = sample(seen.watch, whole)
            seen.arriving = arrived if seen.arriving is None else seen.arriving + arrived

    # ------------------------------------------------------------------ afterwards

    def look(self, models: Models) -> None:
        """Note the names of the weights while they live."""
        buffers: dict[int, str] | None = None
        for seen in self._seen.values():
            parameter = seen.root.alive()
            if parameter is not None:
                seen.name = models.name(parameter) or seen.name
            elif seen.buffer is not None:
                buffers = models.buffer_names() if buffers is None else buffers
                seen.name = _buffer_name(seen.buffer, buffers) or seen.name

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[Quantizer, ...]:
        """Return what was seen, by the weights' names."""
        return tuple(
            self._record(seen, place)
            for seen in sorted(self._seen.values(), key=lambda s: s.name)
            if seen.name and (seen.rewritten is not None or seen.plain < max(seen.steps, default=-1))
        )

    def _record(self, seen: _Seen, place: Callable[[Spot | None], Place | None]) -> Quantizer:
        record = Quantizer(
            parameter=seen.name,
            kind=seen.kind or "plain",
            numel=seen.root.numel,
            format=seen.format or str(seen.root.dtype).removeprefix("torch."),
            route=seen.route or "open",
            place=place(seen.entry.spot) if seen.entry is not None else None,
            rounding=place(seen.rounding),
            used_at=place(seen.used_at),
            function=seen.function,
            zero_nodes=tuple(sorted(seen.zero_nodes)),
            cut_at_entry=seen.entry is not None and seen.entry.cut,
            was_trained=seen.was_trained or seen.root.loaded or not seen.root.drawn,
            carries_gradient=seen.carries_gradient,
            levels=seen.levels,
            seen=len(seen.steps),
            first=seen.first,
            last=seen.last,
            age_steps=seen.age,
            stale_share=seen.stale,
            outdated_steps=len(seen.outdated),
            outdated_share=seen.outdated_share,
            outdated_at=place(seen.outdated_at),
            weight_moved=_moved(seen.weights),
            used_moved=_moved(seen.used, seen.weights),
            flips_per_step=_mean(seen.flips),
            undone_share=_mean(seen.undone),
            rewritten_at=place(seen.rewritten),
            rewritten_at_random=seen.random,
        )
        if seen.first_codes is not None and seen.codes and seen.codes[-1][0] > seen.first_codes[0]:
            (start, first), (end, last) = seen.first_codes, seen.codes[-1]
            share = float((first != last).double().mean()) if first.shape == last.shape else 1.0
            record = replace(record, changed_share=share, span_steps=end - start)
        return replace(
            record,
            gradient_density=_mean(seen.own_density),
            used_density=_mean(seen.used_density),
            gradient_cosine=_mean(seen.cosine),
        )


def _density(gradient: Tensor) -> float:
    return float((gradient != 0).double().mean())


def _buffer_name(used: Made, names: dict[int, str]) -> str:
    """Return the name of the largest buffer that used values are, or were made of; "" for none."""
    found: list[tuple[int, str]] = []
    todo, seen = [used], {id(used)}
    while todo:
        made = todo.pop()
        if not made.memory.gone and made.memory.key in names:
            found.append((math.prod(made.size), names[made.memory.key]))
        for parent in parents(made):
            if id(parent) not in seen:
                seen.add(id(parent))
                todo.append(parent)
    return max(found, default=(0, ""))[1]


def _layout(tensor: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(tensor.shape), tuple(tensor.stride()), (int(tensor.storage_offset()),)


def _as_parameter(tensor: Tensor, made: Made, root: Root) -> tuple[Tensor, bool]:
    """Return a made tensor, or any view of it, in the shape of its parameter; and whether it was turned."""
    if math.prod(made.size) != root.numel or tensor.dtype != made.dtype:
        return tensor.detach().reshape(root.shape), False
    base = tensor.detach().as_strided(made.size, made.stride, made.offset).reshape(root.shape)
    parameter = root.alive()
    if parameter is None or len(root.shape) != 2 or made.size != root.shape[::-1]:
        return base, False
    turned = base.reshape(made.size).t()  # quantized after a transposition: whichever is the closer one
    closer = bool((turned - parameter).square().sum() < (base - parameter).square().sum())
    return (turned, True) if closer else (base, False)


def _function(entry: Entry | None) -> str:
    """Return the name of the function that a weight enters; of one without a name, nothing."""
    if entry is None or entry.inner.function == entry.spot.function or entry.inner.function.startswith("<"):
        return ""
    return entry.inner.function


def _moved(ends: tuple[Tensor, Tensor] | None, weights: tuple[Tensor, Tensor] | None = None) -> float:
    if ends is None:
        return 0.0
    own, norm = float(ends[0].norm()), float((weights or ends)[0].norm())
    if own > CODES * norm:  # codes, whose scale follows after the product, move by their own norm
        norm = own
    return float((ends[1] - ends[0]).norm()) / norm if norm else 0.0


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
