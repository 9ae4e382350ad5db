"""Compare one model, on one data set, in several number formats."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from statistics import fmean, median
from typing import Any

import torch
from torch import nn

from precdoctor.comparison import sensitivity
from precdoctor.comparison.formats import DEFAULT, REFERENCE, Choice, choose
from precdoctor.comparison.layers import first_departure, layers
from precdoctor.comparison.measure import (
    Data,
    Tally,
    Unavailable,
    interleaved,
    median_ratio,
    warm_up,
    weights_only,
)
from precdoctor.comparison.models import (
    Scratch,
    cast,
    held_bytes,
    quantizable,
    reference_of,
    rounded_outputs,
)
from precdoctor.comparison.result import Comparison, FormatResult, Layer
from precdoctor.comparison.statistics import paired, standard_error
from precdoctor.comparison.verdict import sentences, status
from precdoctor.evaluation import Evaluation, EvaluationError, batch_size, check_model, rows, take

#: samples, where nobody says how many
SAMPLES = 100
#: samples for which the layers are looked at
_LAYER_SAMPLES = 4

#: what is being done, how much of it, of how much
Progress = Callable[[str, int, int], None]


def compare(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Any],
    *,
    formats: Sequence[str] | None = None,
    samples: int = SAMPLES,
    name: str = "compare()",
    progress: Progress | None = None,
) -> Comparison:
    """Return what the model loses in other formats than float32; the model itself is not changed.

    ``batches`` gives tensors, ``(inputs, target)`` or mappings of the model's arguments; ``loss(output,
    target)`` returns a mean, or one number per sample. Formats by name, as for ``precdoctor compare``;
    without ``formats`` the usual ones, less those in which the device can't run the model. Raises
    `EvaluationError` (a ValueError) for what can't be compared; its one line says what to do.
    """
    evaluation = Evaluation.of(model, batches, loss, name=name)
    return compare_evaluation(evaluation, formats=formats, samples=samples, progress=progress)


def compare_evaluation(
    evaluation: Evaluation,
    *,
    formats: Sequence[str] | None = None,
    samples: int = SAMPLES,
    progress: Progress | None = None,
) -> Comparison:
    """Return the same for what a user's ``build()`` gave."""
    start = time.perf_counter()
    tell = progress or (lambda *_: None)
    choices = choose(tuple(formats or DEFAULT))
    if samples < 1:
        raise EvaluationError(f"{evaluation.name}: {samples} samples are none; give at least 1")
    check_model(evaluation)
    work = _Work(evaluation, choices, samples, tell, is_default=formats is None)
    results = work.results()
    threads = torch.get_num_threads()
    return Comparison(
        name=evaluation.name,
        samples=len(results[0].losses),
        unit=work.unit,
        layer_samples=work.layer_samples,
        elements=sum(p.numel() for p in (*work.reference.parameters(), *work.reference.buffers())),
        quantized_elements=sum(p.numel() for p in quantizable(work.reference).values()),
        came_in=work.came_in,
        formats=results,
        sentences=sentences(results, work.unit),
        notes=work.notes(),
        torch=torch.__version__,
        device=_device(evaluation.device),
        threads=threads,
        seconds=time.perf_counter() - start,
    )


class _Work:
    """The models and the data, while they are compared."""

    def __init__(
        self,
        evaluation: Evaluation,
        choices: Sequence[Choice],
        samples: int,
        tell: Progress,
        *,
        is_default: bool,
    ) -> None:
        self.evaluation, self.tell = evaluation, tell
        batches = list(rows(evaluation.batches, samples, evaluation.name, evaluation.device))
        if not batches:
            raise EvaluationError(f"{evaluation.name}: there are no batches; give at least one with a sample")
        self.data = Data(evaluation=evaluation, batches=batches)
        self.unit = "sample" if all(batch_size(batch) for batch in batches) else "batch"
        self.came_in = tuple(
            sorted({str(p.dtype).removeprefix("torch.") for p in evaluation.model.parameters()})
        )
        self.was_training = evaluation.model.training
        self.reference = reference_of(evaluation.model, evaluation.name)
        self.computed: list[tuple[Choice, nn.Module]] = []
        self.tallies: list[Tally] = []
        self.left_out: list[str] = []
        for choice in choices:
            if choice.dtype is None:
                continue
            model = self.reference if choice.name == REFERENCE else cast(self.reference, choice.dtype)
            try:
                self.tallies.append(warm_up(self.data, choice, model))
            except Unavailable as error:
                if not is_default:
                    raise
                self.left_out.append(str(error).partition(": ")[2].rpartition(";")[0])
                continue
            self.computed.append((choice, model))
        self.rounded = [choice for choice in choices if choice.block is not None]
        if self.rounded and not quantizable(self.reference):
            raise EvaluationError(
                f"{evaluation.name}: the model has no weights of two dimensions to quantize; leave "
                f"{', '.join(choice.name for choice in self.rounded)} out of --formats"
            )
        self.scratch = Scratch(self.reference)
        self.probes = self._probes()

    @property
    def layer_samples(self) -> int:
        """Return for how many samples, or batches, layers are looked at."""
        return len(self.probes)

    def results(self) -> tuple[FormatResult, ...]:
        """Return the figures of every format, float32 first."""
        total = len(self.data.batches)
        names = ", ".join(choice.name for choice, _ in self.computed)
        interleaved(self.data, self.computed, self.tallies, lambda done: self.tell(names, done, total))
        exact = self.tallies[0]
        broken = [place for place, one in enumerate(exact.losses) if not math.isfinite(one)]
        if broken:
            raise EvaluationError(
                f"{self.evaluation.name}: the loss in float32 is {exact.losses[broken[0]]} for {self.unit} "
                f"{broken[0]} (and {len(broken) - 1} more of {len(exact.losses)}): nothing can be compared "
                "with it; look for non-finite inputs, targets or weights first"
            )
        results = [
            self._result(*pair, tally) for pair, tally in zip(self.computed, self.tallies, strict=True)
        ]
        for choice in self.rounded:
            assert choice.block is not None
            self.scratch.restore()
            self.scratch.quantize(choice.block)
            tally = weights_only(
                self.data,
                self.scratch.model,
                lambda done, name=choice.name: self.tell(name, done, total),  # type: ignore[misc]
            )
            results.append(self._result(choice, self.scratch.model, tally))
        return tuple(results)

    def notes(self) -> tuple[str, ...]:
        """Return what is worth knowing of how it was compared."""
        came = ", ".join(self.came_in)
        return tuple(
            note
            for note in (
                *self.evaluation.notes,
                f"the weights came in {came}; float32 here is what they become by a cast"
                if self.came_in != (REFERENCE,)
                else "",
                "the model was in training mode; it was compared in evaluation mode (no dropout)"
                if self.was_training
                else "",
                "the output is cast to float32 before the loss is computed",
                *(f"left out: {text}" for text in self.left_out),
                "batches have no shared first dimension, so a sample is a batch"
                if self.unit == "batch"
                else "",
            )
            if note
        )

    def _result(self, choice: Choice, model: nn.Module, tally: Tally) -> FormatResult:
        exact = self.tallies[0]
        is_reference = choice.name == REFERENCE
        found = () if is_reference else self._layers(choice, model)
        result = FormatResult(
            name=choice.name,
            kind="reference" if is_reference else "computed" if choice.block is None else "weights",
            stored=choice.name if choice.block is None else choice.block.name,
            losses=tuple(tally.losses),
            loss=fmean(tally.losses),
            loss_error=standard_error(tally.losses),
            difference=None if is_reference else paired(tally.losses, exact.losses),
            held_bytes=held_bytes(model, choice),
            working_bytes=tally.working_bytes,
            seconds_per_sample=median(tally.seconds) if tally.seconds else None,
            time_ratio=median_ratio(tally.seconds, exact.seconds) if tally.seconds else None,
            changed_share=tally.changed / tally.predictions if tally.predictions else None,
            predictions=tally.predictions,
            layers=found,
            departs=first_departure(found),
        )
        if is_reference or status(result, fmean(exact.losses)) not in ("differs", "broken"):
            return result
        return dataclasses.replace(result, sensitivity=self._sensitivity(choice, model, found))

    def _layers(self, choice: Choice, model: nn.Module) -> tuple[Layer, ...]:
        """Return the outputs of all modules beside float32's, and the twin's."""
        dtype = choice.dtype or torch.float32

        def run(of: nn.Module, index: int) -> object:
            self.tell(f"{choice.name}: layers", index, len(self.probes))
            in_format = dtype if of is model and choice.dtype is not None else torch.float32
            return self.data.run(of, in_format, self.probes[index])

        twin_of_cast = choice.dtype is not None
        if twin_of_cast:
            self.scratch.restore()
            self.scratch.round_all(dtype)
            return layers(
                run,
                self.reference,
                model,
                lambda: (self.scratch.model, rounded_outputs(self.scratch.model, dtype)),
                len(self.probes),
            )
        twin = Scratch(self.reference)
        assert choice.block is not None
        twin.quantize(choice.block)
        twin.randomize(0)
        return layers(run, self.reference, model, lambda: (twin.model, nullcontext()), len(self.probes))

    def _sensitivity(self, choice: Choice, model: nn.Module, found: Sequence[Layer]) -> Any:

        def tell(done: int) -> None:
            self.tell(f"{choice.name}: layers kept in float32, one by one", done, sensitivity.MOST)

        exact = self.tallies[0]
        per_sample = median(exact.seconds)
        budget = max(
            sensitivity.FEWEST_SAMPLES, int(sensitivity.SECONDS / per_sample / (2 * sensitivity.MOST))
        )
        if choice.block is not None:
            return sensitivity.of_weights(
                self.data, choice, self.scratch, self.reference, exact.losses, budget, tell
            )
        return sensitivity.of_modules(
            self.data, choice, model, self.reference, found, exact.losses, budget, tell
        )

    def _probes(self) -> list[Any]:
        """Return the first samples, each by itself, or the first batches where they can't be cut."""
        probes: list[Any] = []
        for batch in self.data.batches:
            size = batch_size(batch)
            probes += [batch] if size is None else [take(batch, i, i + 1) for i in range(size)]
            if len(probes) >= _LAYER_SAMPLES:
                break
        return probes[:_LAYER_SAMPLES]


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
