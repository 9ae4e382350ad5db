"""Who the observed parameters are: names, owners, provenance, masters, and those no optimizer steps.

Asked while the run goes on, since models are often gone when it ends.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from precdoctor.evidence import Cast, Place
from precdoctor.observe.models import Models, Owner, place_in
from precdoctor.observe.provenance.recorder import Provenance
from precdoctor.observe.watch import Watch, is_plain

#: elements compared to recognise the rounded copy of a master, and to see whether an orphan moves
_SAMPLE = 1024
#: elements of parameters that are looked at to the end: of larger ones the observed steps say enough
_TINY = 16


@dataclass(slots=True)
class Identity:
    """What is known of one parameter besides its numbers; filled while it lives."""

    parameter: weakref.ref[Tensor]
    shape: tuple[int, ...]
    format: str
    owner: Owner | None = None
    trainable: bool = True
    used: bool | None = None
    #: modules inside whose forward its module ran
    callers: frozenset[int] | None = None
    created: Place | None = None
    replaced: Place | None = None
    created_at: int | None = None
    cast: Cast | None = None
    #: the model's parameter whose float32 master this is
    master_of: str | None = None
    copy_of_master: bool = False
    #: for tiny parameters, of which a few observed steps say little: the values when they were last looked at
    now: Tensor | None = None
    #: for parameters that no optimizer steps: a sample at the first sight and at the last
    watch: Watch | None = None
    first: Tensor | None = None
    last: Tensor | None = None
    looks: int = 0
    #: tells the gradient at the last look from a new one
    mark: tuple[int, int] | None = None
    gradient: str = ""
    gradient_present: int = 0
    gradient_absent: int = 0
    gradient_zero: int = 0


@dataclass(slots=True)
class OptimizerIdentity:
    """Where an optimizer came from."""

    place: Place | None = None
    constructed_at: int | None = None
    group_places: dict[int, Place | None] = field(default_factory=dict)


class Registry:
    """Identities of all parameters seen, by the parameter."""

    def __init__(self, model: nn.Module | None, origins: Provenance | None) -> None:
        self.models, self.origins = Models(model), origins
        self.identities: list[Identity] = []
        self.optimizers: dict[int, OptimizerIdentity] = {}
        #: set by the usage hook once it has watched the first steps: identities of modules that ran, and of
        #: those inside whose forward they did
        self.ran: dict[int, frozenset[int]] | None = None
        self._by_id: dict[int, Identity] = {}
        self._by_reference: dict[int, Identity] = {}

    def identity(self, parameter: Tensor) -> Identity:
        """Return the identity of a live parameter, made at first sight."""
        known = self._by_id.get(id(parameter))
        if known is None or known.parameter() is not parameter:
            known = Identity(
                weakref.ref(parameter), tuple(parameter.shape), str(parameter.dtype).removeprefix("torch.")
            )
            self._by_id[id(parameter)] = known
            self.identities.append(known)
        return known

    def find(self, reference: weakref.ref[Tensor]) -> Identity | None:
        """Return the identity of a parameter that may be gone, by a reference taken while it lived."""
        return self._by_reference.get(id(reference))

    def bind(self, reference: weakref.ref[Tensor]) -> bool:
        """Tie a lane's reference to its (live) parameter; return whether the owner is known."""
        parameter = reference()
        if parameter is None:
            return True
        # the address of the reference may have been that of a dead one
        identity = self._by_reference[id(reference)] = self.identity(parameter)
        if self.models.owner(parameter) is None:
            return False
        self._note(identity, parameter)
        return True

    def look(self, optimizers: list[tuple[int, torch.optim.Optimizer]]) -> None:
        """Note what is known now of every live parameter; called a few times during a run."""
        self.models.refresh()
        self.models.in_optimizers = {
            id(p): place_in(type(o).__qualname__, group, position)
            for _, o in optimizers
            for group, settings in enumerate(o.param_groups)
            for position, p in enumerate(settings["params"])
        }
        stepped: dict[int, Tensor] = {}
        for index, optimizer in optimizers:
            self._note_optimizer(index, optimizer)
            stepped.update({id(p): p for g in optimizer.param_groups for p in g["params"] if is_plain(p)})
        for parameter in stepped.values():
            identity = self.identity(parameter)
            self._note(identity, parameter)
            if parameter.numel() <= _TINY:
                identity.now = parameter.detach().reshape(-1).clone()
        others = [(p, o) for p, o in self.models.parameters() if id(p) not in stepped]
        for parameter, _ in others:
            identity = self.identity(parameter)
            self._note(identity, parameter)
            if parameter.requires_grad or identity.first is not None:
                _sample(identity, parameter)
        self._recognise_masters(list(stepped.values()), [p for p, _ in others])

    def _note_optimizer(self, index: int, optimizer: torch.optim.Optimizer) -> None:
        known = self.optimizers.setdefault(index, OptimizerIdentity())
        if self.origins is None:
            return
        known.place = self.origins.optimizer_place(optimizer)
        known.constructed_at = self.origins.constructed_at(optimizer)
        for group in range(len(optimizer.param_groups)):
            known.group_places[group] = self.origins.group_place(optimizer, group)

    def _note(self, identity: Identity, parameter: Tensor) -> None:
        identity.owner = self.models.owner(parameter) or identity.owner
        identity.format = str(parameter.dtype).removeprefix("torch.")
        identity.trainable = parameter.requires_grad
        if self.ran is not None and identity.owner is not None:
            identity.used = identity.owner.holder in self.ran
            identity.callers = self.ran.get(identity.owner.holder)
        if self.origins is not None:
            identity.created = self.origins.creation(parameter) or identity.created
            identity.replaced = self.origins.replacement(parameter) or identity.replaced
            identity.created_at = self.origins.created_at(parameter) or identity.created_at
            identity.cast = self.origins.cast(parameter) or identity.cast

    def _recognise_masters(self, stepped: list[Tensor], others: list[Tensor]) -> None:
        """Pair float32 tensors that optimizers step with the low-format parameters that equal them rounded.

        The loop or engine that copies them has done so by the time of the next step.
        """
        loose = [m for m in stepped if m.dtype == torch.float32 and self.models.owner(m) is None]
        taken: set[int] = set()
        for copy in others:
            if not copy.requires_grad or copy.dtype in (torch.float32, torch.float64) or not loose:
                continue
            identity = self.identity(copy)
            for master in loose:
                if id(master) in taken or master.shape != copy.shape or master.device != copy.device:
                    continue
                watch = Watch.of(copy.numel(), _SAMPLE)
                if torch.equal(watch.view(master).to(copy.dtype), watch.view(copy)):
                    taken.add(id(master))
                    identity.copy_of_master = True
                    owner = self.models.owner(copy)
                    self.identity(master).master_of = owner.name if owner is not None else None
                    break


def _sample(identity: Identity, parameter: Tensor) -> None:
    if identity.watch is None:
        identity.watch = Watch.of(parameter.numel(), _SAMPLE)
    now = identity.watch.view(parameter).reshape(-1).double()
    if identity.first is None:
        identity.first = now.clone()
    identity.last = now.clone()
    gradient = parameter.grad
    version = 0 if gradient is None or gradient.is_inference() else gradient._version
    mark = None if gradient is None else (id(gradient), version)
    fresh, identity.mark = mark != identity.mark, mark
    identity.looks += 1
    if identity.looks == 1:
        return  # a gradient may be left over from before the run was watched
    if gradient is None or not fresh:
        identity.gradient_absent += 1
        return
    identity.gradient = str(gradient.dtype).removeprefix("torch.")
    identity.gradient_present += 1
    if gradient.layout == torch.strided and not bool(gradient.any()):
        identity.gradient_zero += 1
