"""Which layers to keep in higher precision: tried one by one, then together.

A layer is a weight that is quantized or, in a model that is cast, a module without modules inside. Large
models have more than can be tried; then the most promising are: weights by the loss that their rounding error
should cost to second order (its square times the squared gradient of the loss: Dong et al. 2019, "HAWQ",
section 3, with the empirical Fisher information for the Hessian), modules by how far their outputs fall below
what rounding explains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from precdoctor.comparison.formats import Choice
from precdoctor.comparison.measure import Data
from precdoctor.comparison.models import Scratch, layers_in_float32, quantizable
from precdoctor.comparison.result import Difference, Kept, Layer, Sensitivity
from precdoctor.comparison.statistics import paired
from precdoctor.evaluation import EvaluationError, batch_size, forward, target_of

#: layers tried at most, and seconds that trying them may take
MOST, SECONDS = 12, 40.0
#: samples at least, where there are so many
FEWEST_SAMPLES = 8
#: a layer is worth keeping if it alone takes away this share of the difference
WORTH = 0.05
#: and from this share on no further layers are kept; never more than half of all
ENOUGH = 0.9
#: batches from which gradients are taken
_GRADIENT_BATCHES = 2


def of_weights(
    data: Data,
    choice: Choice,
    scratch: Scratch,
    reference: nn.Module,
    exact: Sequence[float],
    budget: int,
    tell: Callable[[int], None],
) -> Sensitivity:
    """Try weights of a format of weights; ``exact`` are float32's losses, ``budget`` samples may be used."""
    assert choice.block is not None
    block = choice.block
    names = quantizable(scratch.model)
    scratch.restore()
    scratch.quantize(block)
    ranked = _by_fisher(data, reference, scratch, tuple(names))

    def losses(kept: tuple[str, ...], batches: Sequence[Any]) -> list[float]:
        if kept:
            scratch.restore(*kept)
        found = _losses(data, scratch.model, torch.float32, batches)
        if kept:
            scratch.quantize(block, *kept)
        return found

    def cost(name: str) -> int:
        weight = scratch.original(name)
        return weight.numel() * 4 - block.held_bytes(tuple(weight.shape))

    return _tried(data, ranked, len(names), losses, cost, exact, budget, tell)


def of_modules(
    data: Data,
    choice: Choice,
    model: nn.Module,
    reference: nn.Module,
    found: Sequence[Layer],
    exact: Sequence[float],
    budget: int,
    tell: Callable[[int], None],
) -> Sensitivity:
    """Try modules of a cast model, each computing in float32 within it."""
    assert choice.dtype is not None
    dtype = choice.dtype
    leaves = {name for name, module in model.named_modules() if name and not any(module.children())}
    ran = [layer for layer in found if layer.name in leaves]
    # NaN of an overflow comes first, then what is furthest below its twin
    ranked = sorted(ran, key=lambda layer: (not layer.overflows, -_shortfall(layer)))

    def losses(kept: tuple[str, ...], batches: Sequence[Any]) -> list[float]:
        context = layers_in_float32(model, kept, reference) if kept else nullcontext()
        with context:
            return _losses(data, model, dtype, batches)

    def cost(name: str) -> int:
        return sum(p.numel() * (4 - dtype.itemsize) for p in reference.get_submodule(name).parameters())

    return _tried(data, [layer.name for layer in ranked], len(ran), losses, cost, exact, budget, tell)


def _tried(
    data: Data,
    ranked: Sequence[str],
    total: int,
    losses: Callable[[tuple[str, ...], Sequence[Any]], list[float]],
    cost: Callable[[str], int],
    exact: Sequence[float],
    budget: int,
    tell: Callable[[int], None],
) -> Sensitivity:
    batches, samples = _some(data, budget)
    exact = exact[:samples]

    def kept(*names: str) -> Kept:
        return Kept(
            names=names,
            difference=paired(losses(names, batches), exact),
            extra_bytes=sum(map(cost, names)),
        )

    before = paired(losses((), batches), exact)
    alone = []
    for place, name in enumerate(ranked[:MOST]):
        tell(place)
        with suppress(RuntimeError):  # a layer whose own code takes no other format can't be tried
            alone.append(kept(name))
    alone.sort(key=lambda one: _badness(one.difference))
    worth = [k.names[0] for k in alone if _share(k.difference, before) >= WORTH]
    together = None
    for count in range(1, min(len(worth), max(1, total // 2)) + 1):
        together = alone[0] if count == 1 else kept(*worth[:count])
        if _share(together.difference, before) >= ENOUGH:
            break
    return Sensitivity(before=before, alone=tuple(alone), together=together, layers=total)


def _share(after: Difference, before: Difference) -> float:
    """Return the share of the difference that is gone; 1 where a loss is finite again."""
    if after.mean != after.mean:
        return 0.0
    if before.mean != before.mean:
        return 1.0
    return 1 - abs(after.mean) / abs(before.mean) if before.mean else 0.0


def _badness(difference: Difference) -> float:
    return abs(difference.mean) if difference.mean == difference.mean else float("inf")


def _shortfall(layer: Layer) -> float:
    lost = layer.expected_db - layer.sqnr_db
    return lost if lost == lost else float("inf")


def _some(data: Data, budget: int) -> tuple[list[Any], int]:
    """Return the first batches, with about as many samples as may be used, and their number."""
    batches, samples = [], 0
    for batch in data.batches:
        batches.append(batch)
        samples += batch_size(batch) or 1
        if samples >= budget:
            break
    return batches, samples


def _losses(data: Data, model: nn.Module, dtype: torch.dtype, batches: Sequence[Any]) -> list[float]:
    found: list[float] = []
    for batch in batches:
        found += data.losses(model, dtype, batch, data.run(model, dtype, batch))
    return found


def _by_fisher(data: Data, reference: nn.Module, scratch: Scratch, names: tuple[str, ...]) -> list[str]:
    """Return the weights by what their rounding should cost; as they stand, where there is no gradient."""
    if len(names) <= MOST:
        return list(names)
    weights: dict[str, Tensor] = dict(reference.named_parameters())
    scores = dict.fromkeys(names, 0.0)
    try:
        for name in names:
            weights[name].requires_grad_(True)
        for batch in data.batches[:_GRADIENT_BATCHES]:
            with torch.enable_grad():
                value = data.evaluation.loss(forward(reference, batch), target_of(batch)).mean()
                gradients = torch.autograd.grad(value, [weights[n] for n in names], allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    error = scratch.model.get_parameter(name) - weights[name]
                    scores[name] += (gradient * error).square().sum(dtype=torch.float64).item()
    except (RuntimeError, AttributeError, EvaluationError):
        return list(names)  # operations without a derivative: any order is as good
    finally:
        reference.requires_grad_(False)
    return sorted(names, key=lambda name: -scores[name])
