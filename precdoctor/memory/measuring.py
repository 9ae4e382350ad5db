"""Estimate what every recipe holds, and check the chosen one against a real step."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from precdoctor.evaluation import (
    Allocations,
    Evaluation,
    EvaluationError,
    batch_size,
    forward,
    storage_bytes,
)
from precdoctor.evaluation.evaluation import first_line
from precdoctor.formats import BFLOAT16, FLOAT16, FLOAT32, BlockFormat, block_format
from precdoctor.memory.activations import NeedsNumbers, Saved, estimated, first_batch, training_loss
from precdoctor.memory.packed import packed_parameters
from precdoctor.memory.recipes import RECIPES, Compute, Recipe, recipe
from precdoctor.memory.result import (
    CATEGORIES,
    TOLERANCE_ACTIVATIONS,
    TOLERANCE_HELD,
    Check,
    Holding,
    MemoryReport,
    Packed,
)
from precdoctor.memory.steps import Training, training

#: what the weights alone could be stored in
_PACKED = ("e4m3fn:tensor", "int8:channel", "int4:64", "mxfp4", "nvfp4", "nf4")
#: bytes of AdamW's step counter: one float32 per parameter
_COUNTER = 4
#: a real step is made if it should take less than this share of the free memory
_SHARE_OF_FREE = 0.8


@dataclass(slots=True, kw_only=True)
class _Activations:
    """Bytes per sample and anyway, of one way to compute."""

    per_sample: float
    fixed: float
    total: int


def memory(
    evaluation: Evaluation,
    *,
    recipe_name: str = "fp32",
    batch: int | None = None,
    check: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> MemoryReport:
    """Return what the model takes to train by a recipe, with ``batch`` samples in memory at once.

    ``batch`` None: as many as the first batch has. Raises `EvaluationError` for what can't be evaluated,
    LookupError for an unknown recipe.
    """
    chosen = recipe(recipe_name)
    work = _Work(evaluation, batch, progress or (lambda *_: None))
    recipes = work.holdings(chosen)
    holding = next(one for one in recipes if one.recipe == chosen.name)
    checks, peak = work.checked(chosen, holding) if check else ((), None)
    weights_file, checkpoint, is_measured = work.files(chosen)
    return MemoryReport(
        name=evaluation.name,
        batch=work.size,
        batch_shapes=work.shapes,
        elements=work.elements,
        trained_elements=sum(p.numel() for p in work.parameters if p.requires_grad),
        chosen=holding,
        recipes=recipes,
        packed_bytes=work.packed(chosen.products or chosen.weight),
        file_bytes=weights_file,
        checkpoint_bytes=checkpoint,
        files_measured=is_measured,
        formats=work.formats(),
        checks=checks,
        peak_bytes=peak,
        notes=(*evaluation.notes, *work.notes),
        torch=torch.__version__,
        device=str(evaluation.device),
    )


@dataclass(slots=True)
class _Work:
    """One model and one batch, while they are looked at."""

    evaluation: Evaluation
    asked: int | None
    tell: Callable[[str, int, int], None]
    notes: list[str] = field(default_factory=list)
    batch: Any = None
    size: int = 0
    shapes: tuple[str, ...] = ()
    parameters: list[nn.Parameter] = field(default_factory=list)
    _activations: dict[Compute, _Activations] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = self.evaluation.model
        as_it_came = first_batch(self.evaluation, None)
        self.shapes = tuple(str(tuple(t.shape)) for t in tree_leaves(as_it_came) if isinstance(t, Tensor))
        self.batch = as_it_came
        if self.asked is not None:
            self.batch = _again(self.evaluation, as_it_came, self.asked)
        self.size = batch_size(self.batch) or 1
        self.parameters = list(model.parameters())
        if not any(parameter.requires_grad for parameter in self.parameters):
            raise EvaluationError(
                f"{self.evaluation.name}: no parameter requires a gradient, so there is nothing to train"
            )

    @property
    def elements(self) -> int:
        """Return the elements of the parameters, each once."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def is_meta(self) -> bool:
        """Tell whether the model has no numbers to make a step with."""
        return self.evaluation.device.type == "meta"

    def holdings(self, chosen: Recipe) -> tuple[Holding, ...]:
        """Return what every recipe holds; one that the model can't be run in is left out, with a note."""
        found = []
        for one in sorted(RECIPES, key=lambda recipe: recipe is not chosen):  # its error comes first
            try:
                found.append(self.holding(one))
            except EvaluationError as error:
                if one is chosen:
                    raise
                self.notes.append(
                    f"left out {one.name}: {str(error).removeprefix(self.evaluation.name + ': ')}"
                )
        order = [one.name for one in RECIPES]
        return tuple(sorted(found, key=lambda holding: order.index(holding.recipe)))

    def holding(self, one: Recipe) -> Holding:
        """Return what a recipe holds, estimated."""
        activations = self.activations(one)
        model = self.evaluation.model
        found = dict.fromkeys(CATEGORIES, 0)
        quantized = packed_parameters(model) if one.products is not None else set()
        for p in self.parameters:
            own = p.numel() * one.weight.bits // 8
            if id(p) in quantized and one.products is not None:
                codes = -(-p.numel() * one.products.codebook.bits // 8)
                found["weights"] += codes
                found["scales"] += one.products.held_bytes(tuple(p.shape)) - codes
                found["masters"] += own
            else:
                found["weights"] += own
            if not p.requires_grad:
                continue
            found["gradients"] += own
            if isinstance(one.state, BlockFormat):
                blocks = one.state.grid(tuple(p.shape)).blocks
                found["optimizer state"] += 2 * p.numel()
                found["scales"] += 2 * blocks * one.state.scale.bits // 8
            else:
                found["optimizer state"] += 2 * p.numel() * one.state.bits // 8 + _COUNTER
            found["masters"] += p.numel() * one.master.bits // 8 if one.master else 0
            found["compensation"] += p.numel() * one.compensation.bits // 8 if one.compensation else 0
        found["buffers"] = sum(
            b.numel() * one.weight.bits // 8 if b.is_floating_point() else b.nbytes for b in model.buffers()
        )
        found["activations"] = activations.total
        return Holding(
            recipe=one.name,
            what=one.what,
            bytes=found,
            per_sample_bytes=activations.per_sample,
            fixed_bytes=activations.fixed,
        )

    def activations(self, one: Recipe) -> _Activations:
        """Return what the forward pass keeps; recipes that compute alike share it."""
        known = self._activations.get(one.compute)
        if known is None:
            self.tell(f"activations in {one.compute}", len(self._activations), 4)
            known = self._activations[one.compute] = self._measured(one)
        return known

    def _measured(self, one: Recipe) -> _Activations:
        size = batch_size(self.batch)
        try:
            total = estimated(self.evaluation, one, self.batch, size)
            twice = estimated(self.evaluation, one, self.batch, 2 * size) if size else total
        except NeedsNumbers as error:
            if self.is_meta:
                raise EvaluationError(
                    f"{self.evaluation.name}: the model can't be run without numbers ({error}); build it on "
                    "the CPU instead of the meta device"
                ) from None
            note = f"activations are those of a real forward pass: on fake tensors it raised {error}"
            if note not in self.notes:
                self.notes.append(note)
            total = self._real_saved(one)
            return _Activations(per_sample=total / self.size, fixed=0.0, total=total)
        per_sample = (twice - total) / size if size else float(total)
        return _Activations(per_sample=per_sample, fixed=total - per_sample * self.size, total=total)

    def _real_saved(self, one: Recipe) -> int:
        step = self._training(one)
        inputs = step.inputs(self.batch)
        tensors = (leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
        saved = Saved(iter([*step.model.parameters(), *step.model.buffers(), *tensors]))
        with saved.watch(), step.context(self.evaluation.device.type):
            loss = training_loss(self.evaluation, self._forward(step, inputs), inputs)
        found = saved.bytes
        del loss
        return found

    def checked(self, one: Recipe, holding: Holding) -> tuple[tuple[Check, ...], int | None]:
        """Make a real step, count what it allocates, and put it beside the estimate."""
        if self.is_meta:
            self.notes.append("the model is on the meta device: estimated only, no real step was made")
            return (), None
        free = _free_bytes(self.evaluation.device)
        # copies of the model, one step, and what the optimizer makes meanwhile
        if free is not None and 2 * holding.total_bytes > _SHARE_OF_FREE * free:
            self.notes.append("no real step was made: it might not fit into the free memory")
            return (), None
        self.tell(f"a real step of {one.name}", 0, 1)
        step = self._training(one)
        self._step(step, Allocations())  # makes the optimizer's state
        counter = Allocations()
        activations, held = self._step(step, counter)
        return (
            Check(
                what="held between steps, with gradients",
                estimated_bytes=holding.between_bytes,
                measured_bytes=held,
                tolerance=TOLERANCE_HELD,
            ),
            Check(
                what="activations at the end of the forward pass",
                estimated_bytes=holding.bytes["activations"],
                measured_bytes=activations,
                tolerance=TOLERANCE_ACTIVATIONS,
            ),
        ), counter.peak_bytes

    def _step(self, step: Training, counter: Allocations) -> tuple[int, int]:
        """Return the bytes that the forward pass added, and those held after the step, with gradients."""
        step.optimizer.zero_grad(set_to_none=True)
        device = self.evaluation.device.type
        devices = [self.evaluation.device] if device == "cuda" else []
        with torch.random.fork_rng(devices=devices), counter:
            counter.add(step.kept())
            inputs = step.inputs(self.batch)
            tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
            counter.add(tensors)
            before = counter.live_bytes
            with step.context(device):
                loss = training_loss(self.evaluation, self._forward(step, inputs), inputs)
            activations = counter.live_bytes - before
            try:
                loss.backward()  # type: ignore[no-untyped-call]
                step.optimizer.step()
            except RuntimeError as error:
                raise EvaluationError(
                    f"{self.evaluation.name}: a training step raised {first_line(error)}"
                ) from None
            del loss
            held = counter.live_bytes - storage_bytes(tensors)
        return activations, held

    def _training(self, one: Recipe) -> Training:
        try:
            return training(self.evaluation.model, one)
        except RuntimeError as error:
            raise EvaluationError(
                f"{self.evaluation.name}: the model can't be copied ({first_line(error)}); build() must "
                "return one that copy.deepcopy takes"
            ) from None

    def _forward(self, step: Training, inputs: Any) -> Any:
        try:
            return forward(step.model, inputs)
        except Exception as error:
            raise EvaluationError(
                f"{self.evaluation.name}: the model raised {type(error).__name__} in {step.recipe.name}: "
                f"{first_line(error)}"
            ) from None

    def packed(self, fmt: Any) -> int:
        """Return the bytes of all weights in a format, packed: codes and scales; the rest in float32."""
        if not isinstance(fmt, BlockFormat):
            return self.elements * int(fmt.bits) // 8
        quantized = packed_parameters(self.evaluation.model)
        return sum(
            fmt.held_bytes(tuple(p.shape)) if id(p) in quantized else p.numel() * 4 for p in self.parameters
        )

    def formats(self) -> tuple[Packed, ...]:
        """Return what the weights alone would take in each format."""
        whole = self.packed(FLOAT32)
        every: list[Any] = [FLOAT32, BFLOAT16, FLOAT16, *map(block_format, _PACKED)]
        sizes = [(fmt.name, self.packed(fmt)) for fmt in every]
        return tuple(Packed(format=name, bytes=size, saved_share=1 - size / whole) for name, size in sizes)

    def files(self, one: Recipe) -> tuple[int, int, bool]:
        """Return the bytes of a file of weights and of one with optimizer state, and if it was written."""
        holding = self.holding(one)
        between = holding.between_bytes - holding.bytes["gradients"]
        state = sum(holding.bytes[c] for c in ("optimizer state", "compensation"))
        state += holding.bytes["masters"] if one.master is not None else 0
        state += holding.bytes["scales"] if one.products is None else 0
        if self.is_meta:
            return between - state, between, False
        step = self._training(one)
        weights = _file_bytes(step.model.state_dict())
        return weights, weights + state, True


def _again(evaluation: Evaluation, batch: Any, size: int) -> Any:
    return first_batch(replace(evaluation, batches=[batch]), size)


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


class _Counter(io.RawIOBase):
    """A file that keeps nothing of what is written but its length."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.length += size
        return size


def _file_bytes(state: Any) -> int:
    counter = _Counter()
    torch.save(state, counter)  # type: ignore[arg-type]
    return counter.length
