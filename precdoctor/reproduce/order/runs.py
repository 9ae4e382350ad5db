"""The runs of the order case: which there are, and what they measured."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from precdoctor.reproduce.scenario import Options, Seen, read_scan, scan_command

#: every model is trained from each of these seeds; with --quick from the first
SEEDS = (0, 1)
#: pretraining and fine-tuning, in optimizer steps
PRETRAINED, FINETUNED, QUICK_FINETUNED = 800, 300, 150
#: widths of the models that are trained alike, and the one that is also trained shorter and longer
WIDTHS, QUICK_WIDTHS = (16, 32, 64, 128), (32, 64)
LENGTHS_WIDTH, LENGTHS = 32, (200, 1600)
#: the width at which the orders are compared, with --quick too, and the formats
ORDERS_WIDTH, QUICK_ORDERS_WIDTH = 64, 32
INT4, INT8 = "int4-g64", "int8"
#: bytes of text that a training step sees: 16 windows of 64
BYTES_PER_STEP = 16 * 64
#: validation windows that follow each other and count as one observation, since neighbours are alike
RUN_OF_WINDOWS = 8
#: recipes that are scanned, by the name of the files that are written, and the steps of it
SCANS = {"scan-qat": "qat", "scan-lora": "lora", "scan-codes": "codes"}
SCANNED = 30
#: folders of what the runs print and measure, and of the stored models, in the folder of the case
LOGS, MODELS = "runs", "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A difference of two losses over the same text, in nats per byte."""

    mean: float
    #: standard error of the mean, paired, runs of neighbouring windows taken as one observation
    error: float

    @property
    def z(self) -> float:
        """Return the difference in standard errors."""
        return self.mean / self.error if self.error else math.copysign(math.inf, self.mean)

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.error:.4f}"

    @classmethod
    def over(cls, seeds: Sequence[Difference]) -> Difference:
        """Return the mean of the differences of several seeds; its error is that of the text alone."""
        error = math.hypot(*(d.error for d in seeds)) / len(seeds)
        return cls(mean=fmean(d.mean for d in seeds), error=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What compare.py measured of one pretrained model and of what was made of it."""

    #: width of the model
    dim: int
    #: optimizer steps of the pretraining, and of each fine-tuning
    pretrain_steps: int
    steps: int
    seed: int
    #: all weights, and those in the matrices that are quantized
    weights: int
    matrix_weights: int
    #: by name; of each bytes, sqnr_db and codes_differ by reference, losses of the windows of old and new
    models: Mapping[str, Mapping[str, Any]]
    #: by format: kept, error, unchanged
    merging: Mapping[str, Mapping[str, float]] | None
    #: by recipe, bytes: weights, saved
    precisions: Mapping[str, Mapping[str, int]] | None

    def loss(self, model: str, text: str) -> float:
        """Return the mean loss of a model on a text, "old" or "new", in nats per byte."""
        return fmean(self.models[model][text])

    def difference(self, model: str, reference: str, text: str) -> Difference:
        """Return by how much the loss of a model is above that of another."""
        pairs = zip(self.models[model][text], self.models[reference][text], strict=True)
        steps = [one - other for one, other in pairs]
        runs = [fmean(run) for run in _batched(steps, RUN_OF_WINDOWS)]
        return Difference(mean=fmean(steps), error=stdev(runs) / math.sqrt(len(runs)))

    def bytes_of(self, model: str) -> int:
        """Return the bytes of the tensors that are stored."""
        return int(self.models[model]["bytes"])

    @property
    def bytes_per_weight(self) -> float:
        """Return how many bytes of text each weight has been trained with."""
        return self.pretrain_steps * BYTES_PER_STEP / self.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What all runs of the case showed."""

    #: by width and steps of pretraining, in this order, one for each seed
    trained: Mapping[tuple[int, int], Sequence[Trained]]
    #: by the name of `SCANS`
    scans: Mapping[str, Seen]

    @property
    def orders(self) -> Sequence[Trained]:
        """Return the runs in which the orders were compared."""
        return next(runs for runs in self.trained.values() if runs[0].merging)


def commands(sample: Path, out: Path, options: Options) -> dict[str, list[str]]:
    """Return what is run side by side, by name; the longest first, so that no core idles at the end."""
    widths, lengths = (QUICK_WIDTHS, LENGTHS[:1]) if options.quick else (WIDTHS, LENGTHS)
    orders = QUICK_ORDERS_WIDTH if options.quick else ORDERS_WIDTH
    sizes = [(width, PRETRAINED) for width in widths] + [(LENGTHS_WIDTH, length) for length in lengths]
    sizes.sort(key=lambda size: (size == (orders, PRETRAINED), size[0] * size[1]), reverse=True)
    finetuned = options.steps or (QUICK_FINETUNED if options.quick else FINETUNED)
    found = {}
    for width, pretrained in sizes:
        for seed in SEEDS[:1] if options.quick else SEEDS:
            results = out / LOGS / f"{run_name(width, pretrained, seed)}.json"
            results.unlink(missing_ok=True)  # nothing of an earlier run passes for this one's
            arguments = ["--dim", width, "--pretrain-steps", pretrained]
            arguments += ["--seed", seed, "--steps", finetuned, "--results", results]
            if (width, pretrained) == (orders, PRETRAINED):
                arguments += ["--orders", INT4] if options.quick else ["--orders", INT4, INT8]
                arguments += ["--mixed", "--keep", out / MODELS] if seed == SEEDS[0] else []
            found[results.stem] = [sys.executable, str(sample / "compare.py"), *map(str, arguments)]
    return found


def scans(sample: Path, out: Path) -> dict[str, list[str]]:
    """Return the recipes under observation, each on from the pretrained model that was kept."""
    arguments = ("--base", str(out / MODELS / "base.pt"), "--steps", str(SCANNED))
    return {
        name: scan_command(
            sample / "train.py", ("--recipe", recipe, *arguments), out / name, "--steps", "all"
        )
        for name, recipe in SCANS.items()
    }


def run_name(width: int, pretrained: int, seed: int) -> str:
    """Return the name of a run: d64-800-seed0."""
    return f"d{width}-{pretrained}-seed{seed}"


def read(out: Path, names: Iterable[str]) -> Measured:
    """Return what the runs wrote into the folder."""
    trained: dict[tuple[int, int], list[Trained]] = {}
    for name in names:
        run = read_trained(out / LOGS / f"{name}.json")
        trained.setdefault((run.dim, run.pretrain_steps), []).append(run)
    return Measured(
        trained=dict(sorted(trained.items())),
        scans={name: read_scan(out / name) for name in SCANS},
    )


def read_trained(file: Path) -> Trained:
    """Return what compare.py has written as results."""
    results = json.loads(file.read_text(encoding="utf-8"))
    return Trained(**{field.name: results[field.name] for field in dataclasses.fields(Trained)})


def _batched(values: Sequence[float], size: int) -> Iterator[Sequence[float]]:
    """Yield full runs of so many values; what is left over at the end is left out."""
    for start in range(0, len(values) - size + 1, size):
        yield values[start : start + size]
