"""A lane: parameters of one optimizer group that share format and device, observed together.

Before the step a lane fetches the watched weights, gradients and optimizer state into flat buffers;
after it, the weights again, steps the shadow of the optimizer and enters both updates in its ledger.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, Literal

import torch
from torch import Tensor, nn

from precdoctor.numerics import format_of
from precdoctor.observe.steps.ledger import GradientLedger, Ledger, Segment
from precdoctor.observe.steps.states import StateLedger
from precdoctor.observe.steps.twin import (
    CannotReplay,
    copied_state,
    is_sparse,
    setting,
    step,
    twin,
    undisturbed_rng,
)
from precdoctor.observe.steps.wrapping import keeper
from precdoctor.observe.watch import Flat, Watch, staging_dtype

#: "elementwise": the shadow steps the watched elements; "whole tensor": it steps whole tensors;
#: "none": the optimizer can't be replayed, only gradients and motion are seen
Replay = Literal["elementwise", "whole tensor", "none"]
#: elements of the tensors replayed whole in one observed step; larger lanes take turns
WHOLE_BUDGET = 1 << 21
#: observed steps in which weight decay is told apart (it takes three more replays)
_DECAY_STEPS = 12
#: pairs of successive steps in which is looked for what is written over between them
_REWRITES = 64
_PLAIN = (Tensor, nn.Parameter)


def _is_elementwise(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point()


def _counters(optimizer: torch.optim.Optimizer) -> set[str]:
    """Return the names of states that are one number for a whole parameter, not one for each element.

    A parameter without dimensions does not tell them apart: others of the optimizer do, and where there are
    none, the names that torch's optimizers use.
    """
    states = [(p, state) for p, state in optimizer.state.items() if p.dim()]
    found = {name for p, state in states for name, value in state.items() if not _is_elementwise(value, p)}
    return found if states else {"step", "mu_product", "eta", "mu"}


class Lane:
    """Observation of some parameters of one group; see the module's docstring."""

    def __init__(
        self,
        parameters: list[Tensor],
        positions: list[int],
        watches: list[Watch],
        replay: Replay,
        *,
        why_not: str = "",
        random: bool = False,
        decay: str | None = None,
    ) -> None:
        first = parameters[0]
        self.replay, self.why_not, self.random = replay, why_not, random
        #: the setting of the group that is a weight decay
        self._decay = decay
        #: positions of the parameters in their group
        self.positions, self.watches = positions, watches
        self.dtype, self.device = first.dtype, first.device
        self.parameters = [weakref.ref(p) for p in parameters]
        self.shapes = [p.shape for p in parameters]
        self.low = self.dtype not in (torch.float32, torch.float64)
        staging = staging_dtype(self.dtype)
        segments, start = [], 0
        for watch in watches:
            segments.append(Segment(start, start + watch.count, watch.cluster))
            start += watch.count
        self.ledger = Ledger(segments, format_of(self.dtype), staging, self.device)
        self.gradients = GradientLedger(self.ledger.owner, len(parameters))
        self.gradient_format = ""
        self.states: dict[str, StateLedger] = {}
        self._before = Flat(watches, staging, self.device)
        self._after = Flat(watches, staging, self.device)
        self._gradient = Flat(watches, staging, self.device)
        self._state: dict[str, Flat] = {}
        self._indices: dict[tuple[int, ...], Tensor] = {}
        #: which parameters had a gradient in the step at hand
        self.present = [False] * len(parameters)
        #: parameters whose gradient was there and could not be read: neither present nor absent
        self._unread: set[int] = set()
        self._state_as_is = False
        #: gradients hold some rows only, and some optimizers step those alone
        self._sparse = False
        self._scalars: list[dict[str, Any] | None] = []
        self._keys: dict[tuple[Any, ...], list[int]] = {}
        self._roles: dict[str, list[Tensor | None]] = {}
        self._whole: list[tuple[int, Tensor, Tensor, dict[str, Any]]] = []
        self._turn = 0
        self._last_step: int | None = None

    def alive(self) -> list[Tensor | None]:
        """Return the parameters, None for those that are gone or have got another format or shape."""
        found = [ref() for ref in self.parameters]
        return [
            p if p is not None and p.dtype == self.dtype and p.shape == shape else None
            for p, shape in zip(found, self.shapes, strict=True)
        ]

    # ------------------------------------------------------------------ before the step

    def snapshot(self, optimizer: torch.optim.Optimizer, number: int, *, gradients: bool) -> None:
        """Fetch what step ``number`` is about to change. Without ``gradients`` they are fetched after it."""
        parameters = self.alive()
        before = self._before.fetch(parameters)
        follows = self._last_step is not None and self._last_step == number - 1
        if follows and self.replay != "none" and self.ledger.rewrites < _REWRITES:
            self.ledger.add_rewrite(before - self._after.values, before)
        if gradients:
            self._fetch_gradients(optimizer, parameters)
        if self.replay == "none":
            return
        try:
            if self.replay == "whole tensor":
                self._fetch_whole(optimizer, parameters, gradients=gradients)
            else:
                self._fetch_state(optimizer, parameters)
        except CannotReplay as error:
            self.give_up(str(error))

    def give_up(self, why: str) -> None:
        """Withdraw the replay: from now on only gradients and motion are seen."""
        self.replay, self.why_not = "none", why

    def _fetch_gradients(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor | None]) -> None:
        found = [None if p is None else p.grad for p in parameters]
        self._unread = set()
        for index, gradient in enumerate(found):
            if gradient is None or (gradient.layout == torch.strided and type(gradient) in _PLAIN):
                continue
            if is_sparse(gradient) and gradient.numel() <= WHOLE_BUDGET:
                self._sparse, found[index] = True, gradient.to_dense()
                continue
            self.give_up(f"its gradients are {gradient.layout} ({type(gradient).__name__})")
            found[index] = None
            self._unread.add(index)
        values = self._gradient.fetch(found)
        scale = getattr(optimizer, "grad_scale", getattr(keeper(optimizer), "grad_scale", None))
        if isinstance(scale, Tensor):  # a fused step under a GradScaler, or a wrapper, divides inside
            values.div_(scale.to(values.device))
        present = [g is not None for g in found]
        self.present = present
        if not self.gradient_format:
            self.gradient_format = next(
                (str(g.dtype).removeprefix("torch.") for g in found if g is not None), ""
            )

    def _fetch_state(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor | None]) -> None:
        count = len(parameters)
        self._roles, self._scalars = {}, [None] * count
        keys: dict[tuple[Any, ...], list[int]] = {}
        counters = _counters(optimizer) if any(p is not None and not p.dim() for p in parameters) else ()
        for index, parameter in enumerate(parameters):
            if parameter is None:
                continue
            scalars, key = {}, []
            for name, value in optimizer.state.get(parameter, {}).items():
                is_counter = name in counters and not parameter.dim()
                if not is_counter and _is_elementwise(value, parameter):
                    if type(value) not in _PLAIN:
                        raise CannotReplay(f"its state {name!r} is a {type(value).__name__}")
                    self._roles.setdefault(name, [None] * count)[index] = value
                elif isinstance(value, Tensor) and value.numel() != 1:
                    raise CannotReplay(f"its state {name!r} has another shape than the parameter")
                else:
                    scalars[name] = copied_state(value)
                    # counters of an accelerator are not read: that would wait for the device
                    on_host = not isinstance(value, Tensor) or value.device.type == "cpu"
                    key.append((name, _plain(value) if on_host else None))
            self._scalars[index] = scalars
            keys.setdefault(tuple(key), []).append(index)
        self._keys = keys
        for name, tensors in self._roles.items():
            if name not in self._state:
                self._state[name] = Flat(self.watches, self.ledger.u.dtype, self.device)
            self._state[name].fetch(tensors)

    def _fetch_whole(
        self, optimizer: torch.optim.Optimizer, parameters: list[Tensor | None], *, gradients: bool
    ) -> None:
        self._whole, spent, count = [], 0, len(parameters)
        for offset in range(count):
            index = (self._turn + offset) % count
            parameter = parameters[index]
            if parameter is None:
                continue
            if spent and spent + parameter.numel() > WHOLE_BUDGET:
                self._turn = index
                break
            spent += parameter.numel()
            state = {name: copied_state(value) for name, value in optimizer.state.get(parameter, {}).items()}
            before = parameter.detach().to(torch.float64, copy=True)
            gradient = parameter.grad if gradients else None
            self._whole.append(
                (index, before, torch.empty(0) if gradient is None else gradient.double().clone(), state)
            )

    # ------------------------------------------------------------------ after the step

    def finish(self, optimizer: torch.optim.Optimizer, group: int, number: int, *, late: bool) -> None:
        """Fetch what the step has changed, replay it and enter both; ``number`` is the step's number."""
        parameters = self.alive()
        if late:
            self._fetch_gradients(optimizer, parameters)
        after = self._after.fetch(parameters)
        awaited = [
            p is not None and p.requires_grad and i not in self._unread for i, p in enumerate(parameters)
        ]
        self.gradients.add(self._gradient.values, self.present, awaited)
        before = self._before.values
        intended = torch.zeros_like(before, dtype=torch.float64)
        if self.replay != "none":
            try:
                intended = self._replayed(optimizer, group, number)
                if self._weighs_decay(optimizer, group):
                    self._add_decay(optimizer, group, intended)
            except CannotReplay as error:
                self.give_up(str(error))
                intended = torch.zeros_like(intended)
        skipped = getattr(optimizer, "found_inf", None)
        if isinstance(skipped, Tensor):
            intended = intended * (skipped.to(self.device) == 0)
        # state in a low format is itself rounded on the way: the stored update may differ by some percent
        loose = 0.3 if self.low or self.states else 0.02
        # what a later rate would do is asked of low formats alone
        lr = setting(optimizer.param_groups[group].get("lr")) if self.low else None
        self.ledger.add(before, after, intended, loose, lr=lr, number=number)
        self._last_step = number
        self._roles, self._whole = {}, []  # the state is the run's, which may let go of it

    def _weighs_decay(self, optimizer: torch.optim.Optimizer, group: int) -> bool:
        decay = optimizer.param_groups[group].get(self._decay) if self._decay is not None else None
        decays = (setting(decay) or 0.0) > 0
        due = self.low and decays and self.replay == "elementwise" and self.ledger.steps < _DECAY_STEPS
        # a wrapper stores the result: a replay in the run's formats would not show how
        return due and keeper(optimizer) is None

    def _add_decay(self, optimizer: torch.optim.Optimizer, group: int, intended: Tensor) -> None:
        """Enter weight decay's part: what it adds to the exact update and to the stored result.

        The stored result is found by stepping the optimizer in the run's own format with and without
        decay: a separate multiplication rounds back to the weight, one fused rounding dithers it through.
        """
        without = {str(self._decay): 0.0}
        meant = intended - self._replayed(optimizer, group, None, without)
        states: list[dict[str, Tensor]] = [{}, {}]
        stored = self._replayed(optimizer, group, None, exact=False, states=states[0])
        stored -= self._replayed(optimizer, group, None, without, exact=False, states=states[1])
        carried = torch.zeros_like(stored, dtype=torch.bool)
        for name in states[0].keys() & states[1].keys():
            carried |= states[0][name] != states[1][name]
        self.ledger.add_decay(meant, stored, carried)

    def _replayed(
        self,
        optimizer: torch.optim.Optimizer,
        group: int,
        number: int | None,
        overrides: dict[str, Any] | None = None,
        *,
        exact: bool = True,
        states: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the update of the watched elements, float64; 0 where there was no gradient.

        In float64 arithmetic, or with ``exact=False`` in the run's own formats. With a ``number`` (of the
        step) the optimizer's low-format state is compared as well. ``states`` gets the state that the
        optimizer keeps of each element, as it is after the step.
        """

        def replay() -> Tensor:
            if self.replay == "whole tensor":
                return self._replay_whole(optimizer, group, overrides)
            return self._replay(optimizer, group, number, overrides, exact, states)

        with undisturbed_rng() if self.random else contextlib.nullcontext():
            if exact and not self._state_as_is:
                try:
                    return replay()
                except CannotReplay:
                    # code with explicit .float() calls takes no float64 state beside them
                    self._state_as_is = bool(self._roles)
            try:
                return replay()
            except CannotReplay:
                if not exact or self.low or self.replay == "whole tensor":
                    raise
                # state that it makes in float32 takes no float64 gradient
                return self._replay(optimizer, group, None, overrides, exact=False)

    def _replay(
        self,
        optimizer: torch.optim.Optimizer,
        group: int,
        number: int | None,
        overrides: dict[str, Any] | None,
        exact: bool,
        states: dict[str, Tensor] | None = None,
    ) -> Tensor:
        updates = torch.zeros(len(self._before.values), dtype=torch.float64, device=self.device)
        for everyone in self._keys.values():
            members = [m for m in everyone if self.present[m]]
            if not members:
                continue
            pick = self._elements(members)
            before = _picked(self._before.values, pick).double()
            gradient = _picked(self._gradient.values, pick).double()
            flat = nn.Parameter(before.clone() if exact else before.to(self.dtype))
            flat.grad = gradient.clone() if exact else gradient.to(self.dtype)
            if self._sparse:
                flat.grad = flat.grad.to_sparse()
            scalars = self._scalars[members[0]] or {}
            state = {name: copied_state(value) for name, value in scalars.items()}
            held = {n: t for n, tensors in self._roles.items() if (t := tensors[members[0]]) is not None}
            old = {name: _picked(self._state[name].values, pick).double() for name in held}
            for name, value in old.items():
                as_is = self._state_as_is or not exact
                state[name] = value.to(held[name].dtype) if as_is else value.clone()
            shadow = twin(optimizer, group, [flat], [state], overrides, same_implementation=not exact)
            step(shadow)
            moved = flat.detach().double() - before
            if pick is None:
                updates = moved
            else:
                updates[pick] = moved
            if states is not None:
                for name, value in shadow.state[flat].items():
                    if _is_elementwise(value, flat):
                        every = states.setdefault(name, torch.zeros_like(updates))
                        every[slice(None) if pick is None else pick] = value.detach().double()
            if number is not None:
                self._compare_states(optimizer, shadow.state[flat], old, gradient, pick, number)
        return updates

    def low_roles(self) -> list[str]:
        """Return the keys of the state tensors that are held in a format below float32."""
        return [
            name
            for name, tensors in self._roles.items()
            if any(t is not None and t.dtype not in (torch.float32, torch.float64) for t in tensors)
        ]

    def _compare_states(
        self,
        optimizer: torch.optim.Optimizer,
        shadow: dict[str, Any],
        old: dict[str, Tensor],
        gradient: Tensor,
        pick: Tensor | None,
        number: int,
    ) -> None:
        """Enter the intended and the stored change of state held in a format below float32."""
        elapsed = 1 if self._last_step is None else number - self._last_step
        for name in self.low_roles():
            meant = shadow.get(name)
            tensors = self._roles[name]
            if name not in old or not isinstance(meant, Tensor) or meant.shape != old[name].shape:
                continue
            ledger = self.states.get(name)
            if ledger is None:
                dtype = next(t.dtype for t in tensors if t is not None)
                ledger = self.states[name] = StateLedger(self._before.values, format_of(dtype))
            # the tensors were fetched before the step; the optimizer writes them in place or anew
            now: list[Tensor | None] = []
            for parameter, was in zip(self.alive(), tensors, strict=True):
                held = (
                    None if parameter is None or was is None else optimizer.state.get(parameter, {}).get(name)
                )
                now.append(held if isinstance(held, Tensor) else None)
            stored = _picked(Flat(self.watches, self.ledger.u.dtype, self.device).fetch(now), pick).double()
            ledger.add(old[name], stored, meant, gradient, pick, elapsed)

    def _replay_whole(
        self, optimizer: torch.optim.Optimizer, group: int, overrides: dict[str, Any] | None
    ) -> Tensor:
        intended = torch.zeros(len(self._before.values), dtype=torch.float64, device=self.device)
        parameters, states, rows = [], [], []
        for index, before, gradient, state in self._whole:
            if not self.present[index]:
                continue
            whole = nn.Parameter(before.clone())
            if not gradient.numel():  # it came with a closure, or another hook has changed it
                current = self.parameters[index]()
                if current is None or current.grad is None:
                    continue
                gradient = current.grad.double()
            whole.grad = gradient.clone()
            parameters.append(whole)
            states.append({name: self._whole_state(value) for name, value in state.items()})
            rows.append((index, before))
        if not parameters:
            return intended
        shadow = twin(optimizer, group, parameters, states, overrides)
        step(shadow)
        for (index, before), whole in zip(rows, parameters, strict=True):
            segment = self.ledger.segments[index]
            moved = self.watches[index].view(whole.detach() - before)
            intended[segment.start : segment.stop] = moved.reshape(-1)
        return intended

    def _whole_state(self, value: Any) -> Any:
        exact = (
            isinstance(value, Tensor) and value.is_floating_point() and value.ndim and not self._state_as_is
        )
        return value.to(torch.float64, copy=True) if exact else copied_state(value)

    def _elements(self, members: list[int]) -> Tensor | None:
        """Return the positions in the flat buffers of some parameters; None for all of them."""
        key = tuple(members)
        if len(members) == len(self.watches):
            return None
        if key not in self._indices:
            if len(self._indices) > 16:
                self._indices.clear()
            spans = [self.ledger.segments[m] for m in members]
            self._indices[key] = torch.cat([torch.arange(s.start, s.stop, device=self.device) for s in spans])
        return self._indices[key]


def _picked(values: Tensor, pick: Tensor | None) -> Tensor:
    return values if pick is None else values[pick]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(type(value))
