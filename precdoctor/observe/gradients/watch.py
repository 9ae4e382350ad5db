"""What the range of float16, or of 8 bits, does to gradients: operations on them, done again in float32.

An instrument of the operation probe. Float32 reaches 1e-38, so what a product of float16 values is there and
is not in float16 was lost to the format. Results that cancel to nearly nothing are left out: theirs is noise.
Of formats of 8 bits only casts are looked at: the derivative of a cast there and back is a cast of the
gradient, without the scale that values have.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from precdoctor.evidence import GradientFlow, Place
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.gradients.losses import Losses
from precdoctor.observe.gradients.sums import ADDS
from precdoctor.observe.lineage.origins import Marks
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.watch import is_plain

#: operations that are linear in gradients, whose results can be compared with float32's; of the last ones
#: the absolute values tell whether terms cancel
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "convolution_backward", "sum", "mv", "embedding_dense_backward")
_ELEMENTWISE = (
    "_to_copy",
    "mul",
    "div",
    "threshold_backward",
    "gelu_backward",
    "silu_backward",
    "tanh_backward",
    "sigmoid_backward",
    "native_dropout_backward",
    "masked_fill",
)
_JUDGED = frozenset(f"aten::{name}" for name in (*_PRODUCTS, *_ELEMENTWISE))
_SUMMING = frozenset(f"aten::{name}" for name in _PRODUCTS)
#: operations in place that scale gradients
_SCALES = frozenset(f"aten::{name}_" for name in ("mul", "div", "_foreach_mul", "_foreach_div"))
#: what programs do to gradients themselves, whose results are compared as well: casts and squares
_SQUARES = ("aten::pow", "aten::mul")
#: what is left of a result, by projection, below which it is said to be lost, and share of zeros above which
_LOST = 0.5
#: squared size of a sum relative to that of its terms without their signs, below which it is noise
_NOISE = 1e-8
_FLOAT8 = tuple(
    dtype
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
    if (dtype := getattr(torch, name, None)) is not None
)
_LOW = (torch.float16, *_FLOAT8)
#: elements of the operands together, and wall seconds in all, up to which operations are done again
_MOST_ELEMENTS, _MOST_SECONDS = 1 << 24, 2.0


class GradientWatch:
    """Looks at what becomes of gradients in float16; see the module's docstring."""

    def __init__(self, code: UserCode, marks: Marks, losses: Losses) -> None:
        self._code, self._marks, self._losses = code, marks, losses
        #: where a forward pass first casts what gradient comes back to, by format
        self._casts: dict[torch.dtype, Spot | None] = {}
        self._operations = 0
        self._in_pass = False
        #: the step at hand is one of the user's own code
        self.looks_inside = False
        self._seconds = 0.0
        self._before: list[tuple[Tensor, Tensor]] = []

    # ------------------------------------------------------------------ told by the probe

    def before(self, func: Any, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        """Keep gradients that are about to be scaled in place."""
        self._before = []
        if func._schema.name not in _SCALES or self._seconds > _MOST_SECONDS:
            return
        if self._in_pass and torch._C._current_graph_task_id() == -1:
            self._marks.find_gradients()  # the first operation after a backward pass
        targets = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
        kept = [t for t in targets if t.dtype == torch.float16 and is_plain(t) and self._marks.is_gradient(t)]
        if kept and sum(t.numel() for t in kept) <= _MOST_ELEMENTS:
            self._before = [(t, t.detach().clone()) for t in kept]

    def after(self, operation: Operation) -> None:
        """Do an operation on gradients again in float32, and compare."""
        kept, self._before = self._before, []
        if operation.backward != self._in_pass:
            self._in_pass = operation.backward
            self._losses.passes += operation.backward
        outputs = [t for t in operation.outputs if t.dtype in _LOW and is_plain(t) and t.numel()]
        if outputs and outputs[0].dtype in _FLOAT8:
            if operation.name != "aten::_to_copy":
                return
            if not operation.backward:
                self._note_cast(operation, outputs[0].dtype)
                return
        if not outputs or self._seconds > _MOST_SECONDS:
            return
        start = time.perf_counter()
        if self.looks_inside and not operation.backward:
            self._marks.note(operation)  # which nobody else does inside of a step
        if kept:
            self._scaled(operation, kept)
        elif operation.name in _JUDGED and operation.backward:
            self._judge(operation, outputs)
        elif operation.name in ADDS:
            pass  # looked at by `GradientSums`
        elif not operation.backward and any(self._marks.is_gradient(t) for t in operation.inputs):
            self._made_of_gradients(operation, outputs)
            if operation.name == "aten::_to_copy" or _is_square(operation):
                self._small(operation, outputs[0])
        self._seconds += time.perf_counter() - start

    def step_begins(self, optimizer: torch.optim.Optimizer, _: int) -> None:
        """Look at what a step does to gradients as well, where the optimizer is the user's own."""
        code = getattr(inspect.unwrap(type(optimizer).step), "__code__", None)
        self.looks_inside = code is not None and self._code.is_user(code.co_filename)

    def fall_asleep(self) -> None:
        """Nothing is kept of the run's tensors."""
        self.looks_inside = False

    def _note_cast(self, operation: Operation, dtype: torch.dtype) -> None:
        if dtype not in self._casts and operation.graded and any(t.requires_grad for t in operation.inputs):
            self._casts[dtype] = self._code.innermost(operation.frame)[0]

    # ------------------------------------------------------------------ comparison

    def _judge(self, operation: Operation, outputs: list[Tensor]) -> None:
        if sum(t.numel() for t in operation.inputs) > _MOST_ELEMENTS:
            return
        self._operations += 1
        if operation.name == "aten::_to_copy":
            self._compare(operation, outputs[0], operation.inputs[0].float(), None)
            return
        exact = _again(operation, torch.Tensor.float)
        bounds = _again(operation, lambda t: t.float().abs()) if operation.name in _SUMMING else None
        for index, (out, again) in enumerate(zip(operation.outputs, exact, strict=False)):
            if out.dtype == torch.float16:
                self._compare(operation, out, again, None if bounds is None else bounds[index])

    def _scaled(self, operation: Operation, kept: list[tuple[Tensor, Tensor]]) -> None:
        for target, before in kept:
            factor = operation.args[1]
            if isinstance(factor, (list, tuple)):
                return
            scaled = before.float() * factor if "mul" in operation.name else before.float() / factor
            self._compare(operation, target, scaled, None)

    def _made_of_gradients(self, operation: Operation, outputs: list[Tensor]) -> None:
        """Look for what is not finite although the gradients are: a norm, a sum of squares."""
        finite = torch.stack(
            [torch.isfinite(t).all() for t in operation.inputs if t.is_floating_point()]
        ).all()
        for out in outputs:
            overflows = finite & ~torch.isfinite(out).all()
            largest = torch.stack(
                [t.abs().max().float() for t in operation.inputs if t.is_floating_point()]
            ).max()
            share = (~torch.isfinite(out)).float().mean()
            self._losses.note(
                "overflow", operation, torch.stack((overflows.float(), largest, share, share * 0))
            )

    def _small(self, operation: Operation, out: Tensor) -> None:
        """Look for gradients that a cast, or their square, makes 0: by what is left of their norm."""
        if out.numel() > _MOST_ELEMENTS or out.dtype != torch.float16:
            return
        square = operation.name != "aten::_to_copy"
        exact = _again(operation, torch.Tensor.float)[0] if square else operation.inputs[0].float()
        wide, power = out.float(), 1 if square else 2
        left = wide.abs().double().pow(power).sum() / exact.abs().double().pow(power).sum().clamp(min=1e-300)
        largest, meant = exact.abs().max(), exact != 0
        gone = (meant & (wide == 0)).float().sum() / meant.float().sum().clamp(min=1.0)
        lost = meant.any() & (left < _LOST) & (largest < 2.0**-14)
        self._losses.note("underflow", operation, torch.stack((lost.float(), largest, gone, left.float())))

    def _compare(self, operation: Operation, out: Tensor, exact: Tensor, bound: Tensor | None) -> None:
        wide = out.float()
        size = exact.square().double().sum()
        meant = exact != 0
        count = meant.float().sum().clamp(min=1.0)
        projection = (wide.double() * exact.double()).sum() / size.clamp(min=1e-300)
        gone = (meant & (wide == 0)).float().sum() / count
        counts = size > 0
        if bound is not None:
            counts &= size > _NOISE * bound.square().double().sum()
        largest = exact.abs().max()
        smallest_normal = float(torch.finfo(out.dtype).smallest_normal)
        lost = counts & ((projection < _LOST) | (gone > _LOST)) & (largest < smallest_normal)
        row = torch.stack((lost.float(), largest, gone, projection.float()))
        self._losses.note("underflow", operation, row, out.dtype)
        if out.dtype in _FLOAT8:
            return
        infinite = (~torch.isfinite(wide) & torch.isfinite(exact)).float()
        self._losses.note(
            "overflow", operation, torch.stack((infinite.max(), largest, infinite.mean(), largest * 0))
        )

    # ------------------------------------------------------------------ afterwards

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> GradientFlow:
        """Return what was seen."""
        return GradientFlow(
            passes=self._losses.passes,
            operations=self._operations,
            losses=self._losses.records(place, self._casts),
        )


def _is_square(operation: Operation) -> bool:
    if operation.name not in _SQUARES or len(operation.args) < 2:
        return False
    one, other = operation.args[:2]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.data_ptr() == other.data_ptr() and one.shape == other.shape
    return operation.name == "aten::pow" and isinstance(one, Tensor) and other == 2


def _again(operation: Operation, widen: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Run an operation on wider copies of its operands."""

    def wide(value: Any) -> Any:
        if isinstance(value, Tensor):
            return widen(value) if value.is_floating_point() else value
        if isinstance(value, (list, tuple)):
            return type(value)(wide(v) for v in value)
        return value

    kwargs = {k: wide(v) for k, v in operation.kwargs.items() if k != "dtype"}
    out = operation.func(*(wide(a) for a in operation.args), **kwargs)
    return list(tensors_in((out,)))
