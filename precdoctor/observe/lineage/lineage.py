"""Where the tensors come from that a forward pass multiplies with, followed from the parameters on.

A tensor made from parameters and constants alone is **made**; with data it meets in a **use**: a product, a
norm, a look-up. What lies between a parameter and its use is its quantizer, if it has one, found by what
it does and not by its name: values are rounded onto a grid (`Made.rounded`). Tensors are known by
their storage, since ``.data`` and views are other tensors in the same memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.lineage.kinds import (
    ADDS,
    JOINS,
    NARROW,
    SAME,
    TEMPLATES,
    USES,
    draws,
    is_grid,
    rounds,
)
from precdoctor.observe.lineage.made import Entry, Made, Memory, Ref, Root, Values, recipe, storage_key
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.watch import is_plain

#: what calls the forward of a custom autograd function
_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


@dataclass(slots=True)
class Use:
    """An operation that brings a made tensor, or a root itself, together with data."""

    root: Root
    #: None: the parameter itself
    made: Made | None
    #: the argument of the operation
    tensor: Tensor
    step: int
    operation: Operation

    @property
    def inside_function(self) -> bool:
        """Tell whether it happens inside a custom autograd function, where autograd never records."""
        frame: FrameType | None = self.operation.frame
        while frame is not None:
            if frame.f_code is _APPLY:
                return True
            frame = frame.f_back
        return False

    @property
    def carries_gradient(self) -> bool:
        """Tell whether gradient goes through the operation to what lies before it."""
        return any(t.requires_grad for t in self.operation.inputs if t is not self.tensor)


class Lineage:
    """Follows parameters through operations; an instrument of the operation probe."""

    def __init__(
        self,
        code: UserCode,
        *,
        on_use: Callable[[Use], None],
        on_rounding: Callable[[Made, Tensor], None],
        on_rewrite: Callable[[Root, Made, Spot | None], None],
    ) -> None:
        self._code = code
        self._on_use, self._on_rounding, self._on_rewrite = on_use, on_rounding, on_rewrite
        self._roots: dict[int, Root] = {}
        self._made: dict[int, Made] = {}
        self._data: dict[int, Memory] = {}
        self._noise: dict[int, Memory] = {}
        #: what was made in this step, by how it was made
        self._alike: dict[tuple[Any, ...], Made] = {}
        self._written: Tensor | None = None

    # ------------------------------------------------------------------ told by the probe

    def before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what an operation is about to write over, where a made tensor goes into an unknown one."""
        self._written = None
        if not args or not isinstance(args[0], Tensor) or not is_plain(args[0]):
            return
        target = args[0]
        known = self._of(target) is not None or storage_key(target) in self._data
        if not known and any(self._of(t) for t in tensors_in((*args[1:], *kwargs.values())) if is_plain(t)):
            self._written = target.detach().clone()

    def after(self, operation: Operation) -> None:
        """Follow an operation of a forward pass, or of whatever else is no backward pass."""
        if not operation.backward:
            self._follow(operation)

    def _follow(self, operation: Operation) -> None:
        inputs = [t for t in operation.inputs if _is_followed(t)]
        known = [self._of(t) for t in inputs]
        data = [k is None and storage_key(t) in self._data for t, k in zip(inputs, known, strict=True)]
        if not any(k is not None for k in known):
            if any(data):
                self._mark_data(operation, inputs)
            elif draws(operation) or any(storage_key(t) in self._noise for t in inputs):
                self._noise.update({storage_key(t): Memory(t) for t in operation.outputs if is_plain(t)})
            return
        name = operation.name
        if name in USES or self._meets_data(operation, inputs, known, data):
            for tensor, what in zip(inputs, known, strict=True):
                if what is not None:
                    self._use(operation, tensor, what)
            self._mark_data(operation, inputs)
            return
        self._make(operation, name, inputs, known)

    def step_begins(self, _: torch.optim.Optimizer, __: int) -> None:
        """Forget what is gone."""
        self._forget()

    def fall_asleep(self) -> None:
        """Keep what lives on: caches are made once and used for long."""
        self._forget()
        self._data.clear()

    # ------------------------------------------------------------------ lookup

    def roots(self) -> list[Root]:
        """Return the trainable parameters that were met."""
        return list(self._roots.values())

    def made(self, tensor: Tensor) -> Made | Root | None:
        """Return what a tensor is, None where it is neither made from parameters nor one."""
        return self._of(tensor) if _is_followed(tensor) else None

    def _of(self, tensor: Tensor) -> Made | Root | None:
        key = storage_key(tensor)
        root = self._roots.get(key)
        if root is not None:
            return root
        if tensor.requires_grad and tensor.is_leaf and tensor.is_floating_point() and is_plain(tensor):
            # a leaf that is trained; one that was made from another (a cast model) starts anew
            root = Root(
                Memory(tensor),
                weakref.ref(tensor),
                tuple(tensor.shape),
                tensor.numel(),
                tensor.dtype,
                drawn=key in self._noise,
            )
            self._roots[key] = root
            self._assigned(root, self._made.pop(key, None))
            return root
        if type(tensor) is torch.nn.Parameter:
            self._made.pop(key, None)  # made from another one, by a cast of the model, and not trained
        return self._made.get(key)

    def _assigned(self, root: Root, made: Made | None) -> None:
        """Note a weight that was given values rounded from its own, by ``.data =``."""
        parameter = root.alive()
        if made is not None and _is_coarser(made) and any(r.parameter() is parameter for r in made.roots):
            self._on_rewrite(root, made, made.spot or (made.entry.inner if made.entry is not None else None))

    def _forget(self) -> None:
        for table in (self._roots, self._made):
            for key in [key for key, item in table.items() if item.memory.gone]:
                del table[key]
        for marked in (self._data, self._noise):
            for key in [key for key, memory in marked.items() if memory.gone]:
                del marked[key]
        self._alike.clear()

    # ------------------------------------------------------------------ what an operation does

    def _meets_data(
        self,
        operation: Operation,
        inputs: list[Tensor],
        known: list[Made | Root | None],
        data: list[bool],
    ) -> bool:
        """Tell whether an operation brings parameters together with data."""
        if any(data):
            return True
        outputs = operation.outputs
        out = max((t.numel() for t in outputs), default=0)
        largest = max(t.numel() for t, k in zip(inputs, known, strict=True) if k is not None)
        # an input of the model that a parameter is spread over: x * weight
        return any(
            k is None and t.numel() >= out > largest and t.is_floating_point()
            for t, k in zip(inputs, known, strict=True)
        )

    def _mark_data(self, operation: Operation, inputs: list[Tensor]) -> None:
        sources = {storage_key(t) for t in inputs}
        for tensor in operation.outputs:
            if _is_followed(tensor):
                key = storage_key(tensor)
                if key not in sources and key not in self._data and key not in self._roots:
                    self._data[key] = Memory(tensor)
                    self._made.pop(key, None)

    def _use(self, operation: Operation, tensor: Tensor, what: Made | Root) -> None:
        made = what if isinstance(what, Made) else None
        for root in (what,) if isinstance(what, Root) else what.roots:
            if tensor.numel() == root.numel:
                self._on_use(
                    Use(root=root, made=made, tensor=tensor, step=operation.step, operation=operation)
                )

    def _make(
        self, operation: Operation, name: str, inputs: list[Tensor], known: list[Made | Root | None]
    ) -> None:
        filled = operation.kwargs.get("out")  # what was there before does not matter
        known = [None if t is filled else k for t, k in zip(inputs, known, strict=True)]
        if not any(known):
            return
        sources = {storage_key(t) for t in inputs if t is not filled}
        mutable = operation.func._schema.is_mutable if hasattr(operation.func, "_schema") else False
        target = operation.args[0] if mutable and operation.args else None
        for index, tensor in enumerate(operation.outputs):
            if not _is_followed(tensor):
                continue
            key = storage_key(tensor)
            if key in sources and not (target is not None and tensor is target):
                continue  # a view
            written = target is not None and tensor is target
            alone = name in TEMPLATES or (written and len(inputs) == 1 and key not in self._roots)
            if alone and draws(operation):  # nothing is left of the weight but its shape
                self._made.pop(key, None)
                self._noise[key] = Memory(tensor)
                continue
            if (written or tensor is filled) and key in self._roots:
                noise = len(inputs) > 1 and all(storage_key(t) in self._noise for t in inputs[1:])
                self._roots[key].drawn |= noise or draws(operation)
                self._roots[key].loaded |= len(inputs) > 1 and not noise
                self._rewritten(operation, self._roots[key], known[1:])
                continue
            if written and type(tensor) is torch.nn.Parameter:
                continue  # one parameter copied into another, as a target network is
            made = self._record(operation, name, tensor, None if written else index, inputs, known)
            self._made[key] = made
            self._data.pop(key, None)
            if made.values == "rounded" and rounds(name, tensor):
                self._on_rounding(made, tensor)

    def _rewritten(self, operation: Operation, root: Root, sources: list[Made | Root | None]) -> None:
        for source in sources:
            if isinstance(source, Made) and root in source.roots and _is_coarser(source):
                self._on_rewrite(root, source, self._code.innermost(operation.frame)[0])

    def _record(
        self,
        operation: Operation,
        name: str,
        tensor: Tensor,
        output: int | None,
        inputs: list[Tensor],
        known: list[Made | Root | None],
    ) -> Made:
        parents = [k for k in known if k is not None]
        made_parents = [k for k in parents if isinstance(k, Made)]
        roots = frozenset(r for k in parents for r in ((k,) if isinstance(k, Root) else k.roots))
        args, kwargs = self._recorded(operation, output)
        made = Made(
            memory=Memory(tensor),
            roots=roots,
            values="continuous",
            step=operation.step,
            func=operation.func,
            args=args,
            kwargs=kwargs,
            output=output,
            size=tuple(tensor.shape),
            stride=tuple(tensor.stride()),
            offset=int(tensor.storage_offset()),
            dtype=tensor.dtype,
            entry=next((k.entry for k in made_parents if k.entry is not None), None),
            graded=operation.graded,
        )
        if made.entry is None or any(isinstance(k, Root) for k in parents):
            made.entry = self._entry(operation, inputs, known) or made.entry
        if name in ADDS and operation.kwargs.get("alpha", 1) == 1:
            made.terms = _sum(known, inputs, ADDS[name])
        elif name in SAME and len(parents) == 1 and not (is_grid(tensor) or tensor.dtype in NARROW):
            made.terms = _terms(parents[0])
        else:
            made.terms = self._terms_of_alike(operation, made)
        spans = [
            k.span if isinstance(k, Made) else t.numel() for t, k in zip(inputs, known, strict=True) if k
        ]
        made.span = sum(spans) if name in JOINS else max(spans)
        made.values = self._values(name, inputs, tensor, made, known)
        if made.values == "rounded":
            self._inherit(made, made_parents)
            fresh = any(isinstance(k, Root) or k.values == "continuous" for k in parents)
            if fresh and rounds(name, tensor):
                made.rounded = made
                made.spot = self._code.innermost(operation.frame)[0]
        noise = any(storage_key(t) in self._noise for t in inputs)
        made.random = noise or draws(operation) or any(k.random for k in made_parents)
        narrow = next((k.narrow for k in made_parents if k.narrow is not None), None)
        made.narrow = tensor.dtype if tensor.dtype in NARROW else narrow
        return made

    def _terms_of_alike(self, operation: Operation, made: Made) -> dict[Made | Root, float]:
        """Return a tensor that was made in this step in the same way: w / s, written twice."""
        how = recipe(made) if made.output is not None and not draws(operation) else None
        known = self._alike.setdefault(how, made) if how is not None else made
        return {} if known is made else _terms(known)

    def _values(
        self,
        name: str,
        inputs: list[Tensor],
        tensor: Tensor,
        made: Made,
        known: list[Made | Root | None],
    ) -> Values:
        """Return what the elements are; see `Values`."""
        if name in TEMPLATES:
            return "scale"
        if len(made.terms) == 1:
            single, factor = next(iter(made.terms.items()))
            if factor == 1:
                values = single.values if isinstance(single, Made) else "continuous"
                return "rounded" if values == "continuous" and is_grid(tensor) else values
        if tensor.numel() < made.span // 2:
            return "scale"
        kinds = {
            k.values if isinstance(k, Made) else "scale" if t.numel() < made.span // 2 else "continuous"
            for t, k in zip(inputs, known, strict=True)
            if k is not None
        }
        if rounds(name, tensor) and kinds != {"scale"}:
            return "rounded"
        if "continuous" in kinds:
            return "continuous"
        return "rounded" if "rounded" in kinds else "scale"

    def _inherit(self, made: Made, parents: list[Made]) -> None:
        """Take over from where the values, already rounded, come."""
        single = next(iter(made.terms)) if len(made.terms) == 1 else None
        sources = [single] if isinstance(single, Made) else [k for k in parents if k.values == "rounded"]
        for source in sources:
            if source.rounded is not None and (
                made.rounded is None or source.rounded.step > made.rounded.step
            ):
                made.rounded = source.rounded
            made.codes = source.codes if source.codes is not None else made.codes

    def _entry(
        self, operation: Operation, inputs: list[Tensor], known: list[Made | Root | None]
    ) -> Entry | None:
        for tensor, what in zip(inputs, known, strict=True):
            if not isinstance(what, Root):
                continue
            inner = self._code.innermost(operation.frame)[0]
            if inner is None:
                return None
            cut = not tensor.requires_grad or not operation.graded
            return Entry(spot=self._method(operation.frame) or inner, inner=inner, cut=cut)
        return None

    def _method(self, frame: FrameType | None) -> Spot | None:
        """Return the innermost of the user's lines that is in a method of a module."""
        while frame is not None:
            code = frame.f_code
            method = code.co_varnames[:1] == ("self",) and self._code.is_user(code.co_filename)
            if method and isinstance(frame.f_locals.get("self"), torch.nn.Module):
                return Spot(code.co_filename, frame.f_lineno, code.co_name)
            frame = frame.f_back
        return None

    def _recorded(self, operation: Operation, output: int | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as they are kept: tensors that are made by reference, others as they are."""
        args = operation.args
        if output is None and self._written is not None:
            args = (self._written, *args[1:])
        return (
            tuple(self._kept(a) for a in args),
            {key: self._kept(value) for key, value in operation.kwargs.items()},
        )

    def _kept(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            base = self.made(value)
            if base is None:
                return value.detach()
            return Ref(
                base, tuple(value.shape), tuple(value.stride()), int(value.storage_offset()), value.dtype
            )
        if isinstance(value, (list, tuple)):
            return type(value)(self._kept(v) for v in value)
        return value


# ---------------------------------------------------------------------- small helpers


def _is_followed(tensor: Tensor) -> bool:
    return is_plain(tensor) or (type(tensor) is Tensor and tensor.is_quantized)


def _is_coarser(made: Made) -> bool:
    """Tell whether a tensor has a coarser resolution than the parameter it was made from."""
    narrower = made.narrow is not None and all(r.dtype not in NARROW for r in made.roots)
    return made.values == "rounded" or narrower


def _terms(what: Made | Root) -> dict[Made | Root, float]:
    return what.terms if isinstance(what, Made) and what.terms else {what: 1.0}


def _sum(known: list[Made | Root | None], inputs: list[Tensor], sign: float) -> dict[Made | Root, float]:
    """Return a sum of two made tensors of one size as one of what they are sums of; empty for none."""
    if len(known) != 2 or known[0] is None or known[1] is None or inputs[0].shape != inputs[1].shape:
        return {}
    total = dict(_terms(known[0]))
    for what, factor in _terms(known[1]).items():
        total[what] = total.get(what, 0.0) + sign * factor
    return {what: factor for what, factor in total.items() if factor}
