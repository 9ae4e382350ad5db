"""Stochastic rounding of the weights around any optimizer."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from precdoctor.numerics import format_of, round_stochastic
from precdoctor.remedies.wrappers.float32_step import Float32Step

_Self = TypeVar("_Self", bound="StochasticRounding")


class StochasticRounding(Float32Step):
    """Store low-format weights rounded up or down by chance, so that the mean is the exact result.

    ``optimizer = StochasticRounding(torch.optim.AdamW(model.parameters()))``

    What it buys: small updates arrive on average, without any memory for what is lost; the price is noise of
    up to an ulp per weight and step, a random walk that a small learning rate does not make smaller.
    A value the format holds is stored as it is, and the rounding of a finite value never leads to infinity
    unless ties_to_even would.

    ``seed`` starts generators of the wrapper's own, one per device, whose state is part of ``state_dict``;
    torch's global ones are not touched. By default the seed is ``torch.initial_seed()``. Replicas that are to
    stay equal (DistributedDataParallel) need the same seed on every rank: pass one.

    Cost in bytes per parameter, Adam: 12 (weight 2, gradient 2, state 8) instead of 8; the wrapper itself
    keeps nothing. During a step 8 more for float32 copies of weights and gradients.

    Source: Zamirai et al. 2020, "Revisiting bfloat16 training", arXiv 2010.06192, section 4.
    """

    def __init__(self, optimizer: Optimizer, *, seed: int | None = None) -> None:
        super().__init__(optimizer)
        #: where the generators started
        self.seed = torch.initial_seed() if seed is None else seed
        self._generators: dict[str, torch.Generator] = {}
        #: states of generators, by device, that are not needed yet
        self._waiting: dict[str, Tensor] = {}

    def store(self, parameter: Tensor, value: Tensor) -> None:
        """Round stochastically."""
        generator = self._generator(parameter.device)
        rounded = round_stochastic(value, format_of(parameter.dtype), generator, saturate=True)
        # the largest value is right where ties_to_even gives it too; farther out it would hide divergence
        nearest = value.to(parameter.dtype)
        parameter.copy_(torch.where(nearest.isinf(), nearest.float(), rounded))

    def again(self: _Self, optimizer: Optimizer) -> _Self:
        """Return one with the same seed for another optimizer, without hooks."""
        other = super().again(optimizer)
        other.seed, other._generators, other._waiting = self.seed, {}, {}
        return other

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state and, under "precdoctor", the generators'."""
        found = super().state_dict()
        found["precdoctor"]["generators"] = self._states()
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this wrapper, of another one or of the optimizer alone."""
        super().load_state_dict(state_dict)
        states = state_dict.get("precdoctor", {}).get("generators")
        if states is not None:
            self._generators, self._waiting = {}, {name: s.clone() for name, s in states.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Let the states of the generators stand for them."""
        return {**super().__getstate__(), "_generators": {}, "_waiting": self._states()}

    def _generator(self, device: torch.device) -> torch.Generator:
        name = str(device)
        if name not in self._generators:
            generator = torch.Generator(device).manual_seed(self.seed)
            if name in self._waiting:
                generator.set_state(self._waiting.pop(name).cpu())
            self._generators[name] = generator
        return self._generators[name]

    def _states(self) -> dict[str, Tensor]:
        drawn = {name: generator.get_state() for name, generator in self._generators.items()}
        return {**{name: state.clone() for name, state in self._waiting.items()}, **drawn}

    def __repr__(self) -> str:
        return f"{type(self).__name__} (seed {self.seed}) around {self.optimizer!r}"
