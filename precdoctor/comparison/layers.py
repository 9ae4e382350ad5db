"""How far each layer's output is from float32's, and which departs first further than rounding explains.

What rounding explains is measured, not assumed, by a twin that computes in float32 but rounds. For a format
in which the model computes, the twin rounds weights and buffers, and the output of every module once; what is
lost beyond that is lost inside a module: a sum kept in the format, a difference of large numbers, an
overflow. For a format of weights, the twin's weights have errors as large as the real ones, with random
signs; what is lost beyond that has system: a saturated scale, weights that all became 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from precdoctor.comparison.result import Layer

#: decibels from which a layer departs: the bulk of its errors is so much larger than the twin's (ten times
#: the power), and half as much its whole noise. Both, since a single huge activation, as language models have
#: them, decides the whole by how luckily it rounds, and a sparse output the bulk. Own choice; docs/limits.md
#: says how far healthy models are from it
MARGIN_DB = 10.0
#: quantile of the errors that stands for their bulk, and elements that are enough to tell it
_BULK, _ENOUGH = 0.9, 2**16
#: above this, an output is as good as float32's own rounding (24 bits are 146 dB) and is not judged
_EXACT_DB = 110.0


@dataclass(slots=True, kw_only=True)
class _Power:
    """Sums over a layer's outputs."""

    signal: float = 0.0
    noise: float = 0.0
    amax: float = 0.0
    overflows: bool = False
    #: sum over passes of the 90th percentile of the errors' magnitudes
    bulk: float = 0.0

    @property
    def sqnr_db(self) -> float:
        """Return the ratio in decibels."""
        if not math.isfinite(self.noise) or not math.isfinite(self.signal):
            return math.nan
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


class Outputs:
    """The outputs of all modules in one pass in float32, to which other passes are compared."""

    def __init__(self) -> None:
        self._seen: dict[str, list[Tensor]] = {}

    @contextmanager
    def record(self, model: nn.Module) -> Iterator[None]:
        """Keep the outputs of what runs meanwhile."""
        self._seen = {}

        def note(name: str, output: Tensor) -> None:
            # a copy: what follows may write into the output itself
            self._seen.setdefault(name, []).append(output.detach().clone())

        with _hooked(model, note):
            yield

    @contextmanager
    def compare(self, model: nn.Module, powers: dict[str, _Power]) -> Iterator[None]:
        """Add up signal and noise of what runs meanwhile; outputs are matched by name and order."""
        counts: dict[str, int] = {}

        def note(name: str, output: Tensor) -> None:
            place = counts[name] = counts.get(name, -1) + 1
            known = self._seen.get(name, [])
            if place < len(known) and known[place].shape == output.shape:
                _add(powers.setdefault(name, _Power()), known[place], output.detach())

        with _hooked(model, note):
            yield


def layers(
    run: Callable[[nn.Module, int], object],
    reference: nn.Module,
    real: nn.Module,
    twin: Callable[[], tuple[nn.Module, Any]],
    samples: int,
) -> tuple[Layer, ...]:
    """Return every module that ran, in the order in which it ended.

    ``run(model, index)`` passes a sample through a model in the format; ``twin()`` returns the twin and a
    context in which it rounds.
    """
    measured: dict[str, _Power] = {}
    expected: dict[str, _Power] = {}
    outputs = Outputs()
    for index in range(samples):
        with outputs.record(reference):
            run(reference, index)
        with outputs.compare(real, measured):
            run(real, index)
        rounding, context = twin()
        # the twin's own hooks come first, so that what is compared is rounded
        with context, outputs.compare(rounding, expected):
            run(rounding, index)
    return tuple(
        Layer(
            name=name,
            sqnr_db=power.sqnr_db,
            expected_db=expected[name].sqnr_db if name in expected else math.nan,
            excess_db=_ratio_db(power.bulk, expected[name].bulk) if name in expected else math.nan,
            overflows=power.overflows,
            amax=power.amax,
        )
        for name, power in measured.items()
    )


def first_departure(found: Sequence[Layer]) -> Layer | None:
    """Return the first layer that is lost further than its twin, or that overflows; None without one."""
    for layer in found:
        if layer.overflows:
            return layer
        lost = layer.expected_db - layer.sqnr_db
        if layer.sqnr_db < _EXACT_DB and lost > MARGIN_DB / 2 and layer.excess_db > MARGIN_DB:
            return layer
    return None


def _ratio_db(ours: float, theirs: float) -> float:
    if theirs == 0 or not math.isfinite(ours):
        return 0.0 if ours == theirs else math.inf
    return 20 * math.log10(ours / theirs) if ours else -math.inf


def _add(power: _Power, exact: Tensor, output: Tensor) -> None:
    exact, output = exact.float(), output.float()
    if not bool(exact.isfinite().all()):
        finite = exact.isfinite()  # masks are -inf on purpose
        exact, output = exact[finite], output[finite]
    if not exact.numel():
        return
    power.amax = max(power.amax, exact.abs().max().item())
    if not bool(output.isfinite().all()):
        power.overflows = True
    error = (exact - output).flatten()
    step = max(1, error.numel() // _ENOUGH)
    power.bulk += torch.quantile(error[::step].abs(), _BULK).item()
    power.signal += torch.linalg.vector_norm(exact, dtype=torch.float64).item() ** 2
    power.noise += torch.linalg.vector_norm(error, dtype=torch.float64).item() ** 2


@contextmanager
def _hooked(model: nn.Module, note: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def forward_hook(_: nn.Module, __: Any, output: Any) -> None:
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    with _disable_current_modes():  # what is measured with is not what is rounded
                        note(name, leaf)

        return forward_hook

    handles = [
        module.register_forward_hook(hook(name or "(output)")) for name, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
