"""Where a backward pass makes inf or NaN although the loss is finite.

The derivative of a root, a logarithm or a quotient is infinite at the edge of its range, and 0 times that is
NaN. An operation of the backward pass belongs to one of the forward pass by the sequence number that
autograd gives their node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from precdoctor.evidence import Place
from precdoctor.evidence.exactness import NonFiniteGradient
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.lineage.gradients import function_of_engine
from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.probe.operations import Operation
from precdoctor.observe.shadow.infinite import LARGEST, InfinityWatch, is_finite
from precdoctor.observe.shadow.look import floats
from precdoctor.observe.shadow.sites import NonFiniteSite

#: operations of one forward pass whose lines are kept
_LINES = 1 << 16


@dataclass(slots=True, eq=False)
class _Site:
    spot: Spot | None
    node: str
    operation: str
    format: str
    first_step: int
    is_nan: bool = False
    share: float = 0.0
    passes: int = 0
    steps: int = 0


class _Held(NamedTuple):
    """A storage that holds inf or NaN."""

    memory: Memory
    #: the operation that made it, and that of the forward pass whose NaN it comes of
    site: _Site
    source: NonFiniteSite | None


class BackwardWatch:
    """Follows inf and NaN of backward passes by the storage that they are in.

    ``infinite`` knows those that a forward pass has left to it.
    """

    def __init__(self, code: UserCode, infinite: InfinityWatch) -> None:
        self._code, self._infinite = code, infinite
        #: the user's line of each operation of the forward pass, by the number of its node
        self._lines: dict[int, Spot | None] = {}
        self._sites: dict[tuple[Spot | None, str], _Site] = {}
        self._held: dict[int, _Held] = {}
        #: calls of backward
        self._number = 0
        #: the loss of the backward pass at hand is known to be finite
        self._is_wanted = False

    def forward(self, operation: Operation) -> None:
        """Note the line of an operation of a forward pass."""
        number = torch._C._autograd._get_sequence_nr() - 1  # its node was made before it runs
        if number not in self._lines and len(self._lines) < _LINES:
            self._lines[number] = self._code.innermost(operation.frame)[0]

    def line(self) -> Spot | None:
        """Return the line of the forward pass that the operation at hand, of a backward pass, belongs to."""
        node: Any = torch._C._current_autograd_node()
        return self._lines.get(node._sequence_nr()) if node is not None else None

    def losses(self, losses: Sequence[Tensor]) -> None:
        """Note that ``backward`` is about to be called on losses."""
        self._number += 1
        self._is_wanted = bool(losses) and all(t.numel() <= LARGEST and is_finite(t) for t in losses)

    def backward(self, operation: Operation) -> None:
        """Look for inf and NaN in what an operation of a backward pass gives."""
        if operation.graded:  # a checkpoint runs a part of the forward pass again
            self.forward(operation)
            return
        if not self._is_wanted:
            return
        inputs = floats(operation.inputs)
        for out in floats(operation.outputs):
            key = storage_key(out)
            if out.numel() > LARGEST or is_finite(out):
                self._held.pop(key, None)
                continue
            keys = [key, *map(storage_key, inputs)]
            held = next((self._held[k] for k in keys if k in self._held), None)
            if held is None:
                held = _Held(Memory(out), self._born(operation, out), self._left(inputs))
            self._held[key] = held._replace(memory=Memory(out))

    def _left(self, inputs: Sequence[Tensor]) -> NonFiniteSite | None:
        """Return where the NaN comes from that a forward pass has left to its derivative."""
        sites = ((t, self._infinite.site(t)) for t in inputs)
        return next((site for t, site in sites if site is not None and bool(torch.isnan(t).any())), None)

    def kept(self, tensors: Sequence[Tensor]) -> None:
        """Look at what is used after a backward pass: of its gradients only those of leaves are left then."""
        for tensor in tensors if self._held else ():
            held = self._held.get(storage_key(tensor))
            if held is None or held.source is None or held.memory.gone or is_finite(tensor):
                continue
            held.source.gradient_passes.add(self._number)

    def step_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Note that an optimizer goes on with what was made; one that is left out does not begin."""
        if self._held:
            gradients = floats([p.grad for group in optimizer.param_groups for p in group["params"]])
            self.kept(gradients)
            known = [(g, h.site) for g in gradients if (h := self._held.get(storage_key(g))) is not None]
            for site in {site for g, site in known if not is_finite(g)}:
                site.steps += 1
        self.clear()

    def clear(self) -> None:
        """Forget the pass at hand."""
        self._lines.clear()
        self._held.clear()
        self._is_wanted = False

    def _born(self, operation: Operation, out: Tensor) -> _Site:
        """Return where the inf or NaN of a result is made."""
        inside = function_of_engine(operation.frame) is not None
        own = self._code.innermost(operation.frame)[0] if inside else None
        spot, name = own or self.line(), torch._C._current_autograd_node().name()
        site = self._sites.get((spot, name))
        if site is None:
            kind, form = operation.name.rpartition("::")[2], str(out.dtype).removeprefix("torch.")
            site = self._sites[(spot, name)] = _Site(spot, name, kind, form, operation.step)
        bad = ~torch.isfinite(out)
        site.is_nan |= bool(torch.isnan(out).any())
        site.share = max(site.share, float(bad.double().mean()))
        site.passes += 1
        return site

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[NonFiniteGradient, ...]:
        """Return what was seen, in the order of first sight."""
        return tuple(
            NonFiniteGradient(
                place=place(site.spot),
                function=site.spot.function if site.spot is not None else "",
                node=site.node,
                operation=site.operation,
                format=site.format,
                first_step=site.first_step,
                is_nan=site.is_nan,
                share=site.share,
                passes=site.passes,
                steps=site.steps,
            )
            for site in self._sites.values()
        )
