"""A recipe as something that can be run: the model, its optimizer, and one step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from precdoctor.evaluation import cast_floating
from precdoctor.formats import BlockFormat
from precdoctor.memory.packed import pack_linears
from precdoctor.memory.recipes import STATE_FORMAT, Recipe
from precdoctor.numerics import Quantized, Scales, dequantize, quantize
from precdoctor.remedies.wrappers import KahanSummation, MasterWeights, StochasticRounding


@dataclass(slots=True, kw_only=True)
class Training:
    """A model and its optimizer, as a recipe has them."""

    recipe: Recipe
    model: nn.Module
    optimizer: Optimizer

    def inputs(self, batch: Any) -> Any:
        """Return the batch with the model's inputs in its format."""
        if self.recipe.compute != "bfloat16":
            return batch
        if isinstance(batch, (tuple, list)):
            return (*(cast_floating(item, torch.bfloat16) for item in batch[:-1]), batch[-1])
        return cast_floating(batch, torch.bfloat16)

    def context(self, device: str) -> AbstractContextManager[Any]:
        """Return what the forward pass runs in."""
        return autocast(self.recipe, device)

    def kept(self) -> Iterator[Tensor]:
        """Yield what is held between steps, gradients aside."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
        yield from getattr(self.optimizer, "_kept", {}).values()


def autocast(recipe: Recipe, device: str) -> AbstractContextManager[Any]:
    """Return the context of a recipe's forward pass."""
    return torch.autocast(device, torch.bfloat16) if recipe.compute == "autocast" else nullcontext()


def training(model: nn.Module, recipe: Recipe) -> Training:
    """Return a copy of the model, as the recipe trains it."""
    own = packed(copy.deepcopy(model).to(stored_dtype(recipe)).train(), recipe)
    parameters = [parameter for parameter in own.parameters() if parameter.requires_grad]
    inner: Optimizer = AdamW(parameters, lr=1e-4)
    if isinstance(recipe.state, BlockFormat):
        inner = Adam8bit(parameters)
    elif recipe.master is not None:
        inner = MasterWeights(inner)
    elif recipe.compensation is not None:
        inner = KahanSummation(inner)
    elif recipe.name == "bf16-sr":
        inner = StochasticRounding(inner, seed=0)
    return Training(recipe=recipe, model=own, optimizer=inner)


def stored_dtype(recipe: Recipe) -> torch.dtype:
    """Return the dtype of the parameters."""
    return torch.bfloat16 if recipe.weight.bits == 16 else torch.float32


def packed(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Return the model itself, with its linear layers packed if the recipe packs them."""
    return model if recipe.products is None else pack_linears(model, recipe.products)


class Adam8bit(Optimizer):
    """Adam with both moments in eight-bit codes; here for the memory it takes, not for how it trains.

    Libraries use codes that are finer near 0; they take the same bytes.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float = 1e-4) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        gradient = parameter.grad.float()
        first, second = (self._moment(state, name, parameter) for name in ("exp_avg", "exp_avg_sq"))
        first.lerp_(gradient, 1 - group["betas"][0])
        second.lerp_(gradient.square(), 1 - group["betas"][1])
        parameter.sub_(first / (second.sqrt() + group["eps"]), alpha=group["lr"])
        for name, moment in (("exp_avg", first), ("exp_avg_sq", second)):
            quantized = quantize(moment, STATE_FORMAT)
            state[f"{name}_codes"], state[f"{name}_scales"] = quantized.codes, quantized.scales.block

    @staticmethod
    def _moment(state: dict[str, Any], name: str, like: Tensor) -> Tensor:
        codes = state.get(f"{name}_codes")
        if codes is None:
            return torch.zeros_like(like, dtype=torch.float32)
        scales = Scales(block=state[f"{name}_scales"])
        return dequantize(Quantized(format=STATE_FORMAT, codes=codes, scales=scales))
