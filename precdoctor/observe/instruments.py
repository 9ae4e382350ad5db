"""All instruments of the operation probe: made here, asked here for what they saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from precdoctor.evidence import Place
from precdoctor.observe.decays.watch import DecayWatch
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.gradients.losses import Losses
from precdoctor.observe.gradients.passes import Passes
from precdoctor.observe.gradients.patches import GradientPatches
from precdoctor.observe.gradients.sums import GradientSums
from precdoctor.observe.gradients.watch import GradientWatch
from precdoctor.observe.integers.watch import IntegerWatch
from precdoctor.observe.lineage.made import Made
from precdoctor.observe.models import Models
from precdoctor.observe.predictions import PredictionWatch
from precdoctor.observe.probe.operations import Instrument, is_transformed
from precdoctor.observe.quantizers.clipping import ClippingWatch
from precdoctor.observe.quantizers.gradients import GradientQuantizerWatch
from precdoctor.observe.quantizers.watch import QuantizerWatch
from precdoctor.observe.randoms.watch import RandomWatch
from precdoctor.observe.shadow.watch import ShadowWatch
from precdoctor.observe.sums.watch import AccumulationWatch


class Instruments:
    """The instruments, in the order in which they look at an operation."""

    def __init__(self, code: UserCode, *, thorough: bool = False) -> None:
        self.quantizers = QuantizerWatch(code)
        self.clipping = ClippingWatch(code, lambda t: self.quantizers.lineage.made(t) is not None)
        self.gradient_quantizers = GradientQuantizerWatch(code)
        self.predictions = PredictionWatch(code)
        self.integers = IntegerWatch(code)
        self.randoms = RandomWatch(code)
        self.decays = DecayWatch(code)
        self.accumulations = AccumulationWatch(code, self.quantizers.lineage)
        marks, losses = self.accumulations.book.marks, Losses(code)
        self.gradients = GradientWatch(code, marks, losses)
        self.sums = GradientSums(marks, losses)
        self.patches = GradientPatches(marks, losses)
        self.passes = Passes()
        lineage = self.quantizers.lineage
        self.shadow = ShadowWatch(code, lambda t: lineage.made(t) is not None, thorough=thorough)

    @property
    def all(self) -> tuple[Instrument, ...]:
        """Return them all."""
        return (
            self.quantizers,
            self.clipping,
            self.gradient_quantizers,
            self.predictions,
            self.integers,
            self.randoms,
            self.decays,
            self.accumulations,
            self.gradients,
            self.sums,
            self.patches,
            self.shadow,
        )

    @property
    def limits(self) -> tuple[str, ...]:
        """Return what they left out and why, in sentences."""
        return self.shadow.limits

    def look(self, models: Models) -> None:
        """Note the names of what was seen while it lives."""
        self.quantizers.look(models)
        self.clipping.look(models)
        self.integers.look(models)
        self.randoms.look(models)
        self.accumulations.book.look(models)
        self.shadow.look(models)

    def passed(
        self, outputs: Sequence[Any], seeds: Sequence[Any], inputs: Sequence[Any], result: Any
    ) -> None:
        """Take note of a backward pass that has ended: what of, and the gradients that it returned."""
        if not is_transformed():
            self.passes.note(outputs, seeds)
        with suppress(NotImplementedError):  # gradients of many directions at once lie in no memory
            if result:
                self.accumulations.book.marks.gradients(inputs, result)

    def reads_at(self, step: int) -> bool:
        """Tell whether something is to be read after ``step`` steps, while the probe sleeps."""
        return self.accumulations.book.reads_at(step)

    def read(self, step: int) -> None:
        """Look at what goes on while the probe sleeps."""
        self.accumulations.book.read(step)

    def cast_of(self, tensor: Tensor) -> Spot | None:
        """Return the line that made a tensor from a parameter, where that was seen."""
        made = self.quantizers.lineage.made(tensor)
        return made.entry.inner if isinstance(made, Made) and made.entry is not None else None

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> dict[str, Any]:
        """Return what was seen, by the field of `Evidence`."""
        return {
            "quantizers": self.quantizers.evidence(place),
            "data_quantizers": self.clipping.evidence(place),
            "gradient_quantizers": self.gradient_quantizers.evidence(place),
            "predictions": self.predictions.evidence(place),
            "integers": self.integers.evidence(place),
            "uniforms": self.randoms.evidence(place),
            "decays": self.decays.evidence(place),
            "accumulations": self.accumulations.book.evidence(place),
            "gradient_flow": dataclasses.replace(
                self.gradients.evidence(place), attempts=self.passes.evidence()
            ),
            "exactness": self.shadow.evidence(place),
        }
