"""The shadow: the values of forward passes, and of the user's own code, in float64 beside what they are.

An operation is run again in float64 on the exact values of its arguments; what lies between the two is
the error that came in since something last counted as exact. Exact count parameters, data, random
numbers, whatever jumps, and what an operation with a weight (a layer) returns: mixed precision accepts
the rounding of layers, and what is judged is the arithmetic between them. In a backward pass the user's own
functions are followed, and what has lost its digits there on its way to the parameters; where it is
``thorough``, everything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from precdoctor.evidence import Place
from precdoctor.evidence.exactness import Exactness
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.lineage.gradients import function_of_engine
from precdoctor.observe.lineage.made import storage_key
from precdoctor.observe.models import Models
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.shadow.backward import BackwardWatch
from precdoctor.observe.shadow.choices import ChoiceWatch
from precdoctor.observe.shadow.digits import NARROW, DigitWatch, hurt_of, measured
from precdoctor.observe.shadow.follow import Follower, is_parameter
from precdoctor.observe.shadow.infinite import LARGEST, InfinityWatch, is_finite
from precdoctor.observe.shadow.kinds import Kind, kind_of
from precdoctor.observe.shadow.look import Look, floats, written
from precdoctor.observe.shadow.marks import Marks
from precdoctor.observe.shadow.steering import SteeringWatch
from precdoctor.observe.shadow.table import LARGEST as LARGEST_SHADOW
from precdoctor.observe.shadow.table import ShadowTable

#: optimizer steps from which on values that never were below float32 are not followed any more, unless such
#: have lost digits; and passes in which a model was evaluated, where they are followed all the same
_EARLY, _EVALUATIONS = 3, 3
#: CPU seconds of this thread, and share of its time beyond them, that following values may take
_SECONDS, _SHARE = 1.0, 0.25
#: share of the largest loss seen below which what is left of a loss is rounding, and that is no illness
_CONVERGED = 0.01


class ShadowWatch:
    """Follows values in float64; an instrument of the operation probe.

    ``is_made`` tells whether a tensor is a trained parameter, or made from such and constants alone;
    ``thorough`` follows values of all formats in all steps, however long that takes.
    """

    def __init__(self, code: UserCode, is_made: Callable[[Tensor], bool], *, thorough: bool = False) -> None:
        self._code, self._thorough = code, thorough
        self._table = ShadowTable()
        self._marks = Marks(is_made, self._table)
        self._infinite = InfinityWatch(self._marks.is_weight)
        self._backward = BackwardWatch(code, self._infinite)
        self._digits = DigitWatch(self._table)
        self._steering = SteeringWatch(self._table, self._digits)
        self._choices = ChoiceWatch(code, self._table)
        self._follower = Follower(self._table, self._marks, self._infinite, self._digits)
        #: forward passes, told apart by the calls of backward: the number of this one, and those looked at
        self._number, self._passes = 0, set[int]()
        #: those in which layers ran without gradient
        self._evaluated = set[int]()
        self._operations = 0
        self._largest_loss = 0.0
        self._loss: tuple[str, Place | None] = ("", None)
        self._loss_errors: list[tuple[int, float]] = []
        self._began, self._seconds, self._was_overspent = time.process_time(), 0.0, False

    # ------------------------------------------------------------------ told by the probe

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the exact values that an operation is about to write over."""
        kind = kind_of(func)
        if not kind.writes or self._is_overspent():
            return
        backward = torch._C._current_graph_task_id() != -1
        if not backward or self._table.has_any(floats((*args, *kwargs.values()))):
            self._follower.before(kind, args, kwargs)

    def after(self, operation: Operation) -> None:
        """Look at an operation."""
        kind = kind_of(operation.func)
        if not operation.backward:
            self._backward.kept(floats(operation.inputs))
            self._choices.used(operation)
            if kind.chooses:
                self._choices.chosen(operation, self._number)
        if kind.ignored and not operation.backward:
            self._marks.view_of(operation.args)
        if kind.ignored or self._is_overspent():
            if operation.backward and kind.writes:
                self._forget(written(kind, operation.args))
            return
        start = time.thread_time()
        try:
            if operation.backward:
                self._backward.backward(operation)
                self._look_back(operation, kind)
            else:
                self._backward.forward(operation)
                self._look(operation, kind)
        finally:
            self._seconds += time.thread_time() - start

    def step_begins(self, optimizer: torch.optim.Optimizer, _: int) -> None:
        """Look at the gradients that an optimizer is given; what it writes nobody sees."""
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        for gradient in floats(gradients):
            self._arrive("gradient", [gradient], None)
            self._table.drop(storage_key(gradient))
        self._backward.step_begins(optimizer)
        self._infinite.sweep()
        self._marks.sweep()
        self._follower.schedules.sweep()

    def fall_asleep(self) -> None:
        """Let go of all values."""
        self._table.clear()
        self._infinite.clear()
        self._backward.clear()
        self._marks.clear()
        self._follower.schedules.clear()
        self._steering.clear()
        self._choices.clear()

    def losses(self, losses: Sequence[Tensor], step: int, place: Place | None) -> None:
        """Look at the losses that ``backward`` is about to be called on."""
        self._backward.losses(floats(losses))
        for loss in floats(losses):
            if not self._loss[0]:
                self._loss = (str(loss.dtype).removeprefix("torch."), place)
            site = self._infinite.site(loss)
            if site is not None and not is_finite(loss):
                site.loss_passes.add(self._number)
            shadow = self._table.get(loss)
            if shadow is not None:
                self._loss_errors.append((step, measured(loss, shadow.view(loss)).relative))
            size = float(loss.detach().abs().max()) if 0 < loss.numel() <= LARGEST else 0.0
            if math.isfinite(size):
                self._largest_loss = max(self._largest_loss, size)
            if not size < _CONVERGED * self._largest_loss:
                self._arrive("loss", [loss], None)
        self._number += 1

    def saved(self, named: Iterable[tuple[str, Tensor]], spot: Spot | None) -> None:
        """Take note of tensors that a line saves in a checkpoint."""
        self._infinite.saved(named, spot)

    def loaded(self, named: Iterable[tuple[str, Tensor]], spot: Spot | None) -> None:
        """Take note of tensors that a line loads into a module."""
        self._infinite.loaded(named, spot)

    # ------------------------------------------------------------------ one operation

    def _look_back(self, operation: Operation, kind: Kind) -> None:
        """Look at an operation of a backward pass."""
        damaged = (s.damage for t in floats(operation.inputs) if (s := self._table.get(t)) is not None)
        is_followed = any(damage is not None and damage.backward for damage in damaged)
        own = self._is_own(operation.frame)
        if not operation.graded and (own or is_followed or self._thorough):
            self._look(operation, kind, own=own)
        elif kind.writes:
            self._forget(written(kind, operation.args))

    def _is_own(self, frame: FrameType | None) -> bool:
        """Tell whether the autograd engine runs the user's code: a custom function's backward, or a hook."""
        function = function_of_engine(frame)
        while function is not None and frame is not None:
            if self._code.is_user(frame.f_code.co_filename):
                return True
            frame = frame.f_back if frame is not function else None
        return False

    def _look(self, operation: Operation, kind: Kind, *, own: bool = True) -> None:
        backward = operation.backward
        self._operations += 1
        if not backward:
            self._passes.add(self._number)
        inputs, into = floats(operation.inputs), written(kind, operation.args)
        outs = into or floats(operation.outputs)
        # the loss, at which passes are told apart, is known when backward begins
        look = Look(self._code, operation, kind, inputs, into, self._number - backward)
        if not outs:
            if kind.name == "_local_scalar_dense" and inputs:
                self._is_read(inputs[0])
                self._steering.read(look, inputs[0])
            return
        self._steering.scaled(look, outs[0])
        if not own:
            look.is_derivative, look.spot = True, self._backward.line()
        if kind.factory:
            self._marks.born(outs, (look.spot,) if look.spot is not None else ())
            if not kind.counting:
                return
        keys = {storage_key(t) for t in inputs}
        if not into and storage_key(outs[0]) in keys:
            return  # a view
        self._follower.schedules.looked_up(look, outs[0])
        self._marks.probabilities(look, outs)
        if any(is_parameter(t) for t in into):
            self._arrive("parameter", inputs, look)
            self._forget(into)
        elif kind.same and not into and inputs and self._marks.is_weight(inputs[0]):
            self._marks.weights(outs)
        elif self._marks.is_layer(look):
            self._arrive("gradient" if backward else "layer", inputs, look)
            self._marks.layers(outs)
            if not operation.graded and not backward and len(self._evaluated) < _EVALUATIONS:
                self._evaluated.add(self._number)
            self._restart(look, outs)
        elif kind.restarts:
            self._restart(look, outs)
        elif self._needs_no_shadow(look, outs):
            self._check(look, outs)
        elif not self._follower.follow(look, outs):
            self._restart(look, outs)

    def _needs_no_shadow(self, look: Look, outs: Sequence[Tensor]) -> bool:
        if self._table.has_any(look.inputs):
            return False
        if look.moves and not _narrows(look, outs):
            return True
        if self._thorough or self._digits.cancels_wide or self._number in self._evaluated:
            return False
        return look.step >= _EARLY and not any(t.dtype in NARROW for t in (*look.inputs, *outs))

    def _restart(self, look: Look, outs: Sequence[Tensor]) -> None:
        """Let results count as exact."""
        for out in outs:
            self._table.drop(storage_key(out))
        self._check(look, outs)

    def _check(self, look: Look, outs: Sequence[Tensor]) -> None:
        """Look for inf and NaN only; those of a backward pass are found by another instrument."""
        for out in outs if not look.operation.backward else ():
            if out.numel() <= LARGEST and not is_finite(out):
                self._infinite.look(look, out, None)
            elif look.written:
                self._infinite.forget(out)

    # ------------------------------------------------------------------ where wrong values get to

    def _arrive(self, where: str, tensors: Sequence[Tensor], look: Look | None) -> None:
        for tensor in tensors:
            shadow = self._table.get(tensor)
            if shadow is None or shadow.damage is None:
                continue
            if look is not None and look.is_derivative and not shadow.damage.backward:
                continue  # what the forward pass has lost is judged there
            exact = shadow.view(tensor)
            error = measured(tensor, exact).relative
            if hurt_of(shadow.damage, tensor, exact, error) is not None:
                spot = look.spot if look is not None else None
                shadow.damage.reach(where, self._number, spot, error)

    def _is_read(self, tensor: Tensor) -> None:
        site = self._infinite.site(tensor)
        if site is not None:
            site.read_passes.add(self._number)
        self._arrive("read", [tensor], None)

    def _forget(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self._table.drop(storage_key(tensor))
            self._infinite.forget(tensor)

    def _is_overspent(self) -> bool:
        if self._thorough or self._seconds <= _SECONDS:
            return False
        elapsed = time.process_time() - self._began
        if self._seconds <= _SECONDS + _SHARE * (elapsed - self._seconds):
            return False
        self._was_overspent = True
        self.fall_asleep()
        return True

    # ------------------------------------------------------------------ afterwards

    @property
    def limits(self) -> tuple[str, ...]:
        """Return what was left out and why, in sentences."""
        spent = "values were compared with float64 for a part of the time, to keep that within bounds"
        large = f"tensors of over {LARGEST_SHADOW:,} elements have nothing in float64 beside them"
        said = ((spent, self._was_overspent), (large, self._follower.left_out))
        return tuple(text for text, applies in said if applies)

    def look(self, models: Models) -> None:
        """Note the names of the modules while they live."""
        sites = [*self._infinite.sites.values(), *self._digits.sites]
        names = models.module_names() if sites else {}
        for site in sites:
            site.look(names)

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> Exactness:
        """Return what was seen, in the order of first sight."""
        digits = self._digits
        return Exactness(
            passes=len(self._passes),
            operations=self._operations,
            non_finite=tuple(site.record(place) for site in self._infinite.sites.values()),
            non_finite_gradients=self._backward.evidence(place),
            evaluations=len(self._evaluated),
            cancellations=tuple(s.record(place, self._evaluated) for s in digits.cancellations.values()),
            lossy_sums=tuple(site.record(place) for site in digits.lossy_sums.values()),
            phases=tuple(site.record(place) for site in digits.phases.values()),
            loss_format=self._loss[0],
            loss_place=self._loss[1],
            loss_errors=tuple(self._loss_errors),
        )


def _narrows(look: Look, outs: Sequence[Tensor]) -> bool:
    """Tell whether values come into a format that may not hold them."""
    form = outs[0].dtype
    if form == torch.float64:
        return False
    if look.kind.name in ("_to_copy", "copy"):
        sources = tensors_in((*look.operation.args, *look.operation.kwargs.values()))
        return any(t.dtype != form and not (t.dtype in NARROW and form == torch.float32) for t in sources)
    return any(t.dtype != form for t in look.inputs)
