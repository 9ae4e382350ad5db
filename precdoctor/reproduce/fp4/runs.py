"""The runs of the FP4 case: which there are, and what they left."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precdoctor.reproduce.scenario import Options, Seen, read_scan, scan_command

#: optimizer steps of the main runs, with --quick too; the report's 5,000 steps are batches, 4 to an update
UPDATES, QUICK_UPDATES = 1250, 160
#: optimizer steps where recipes are only compared with each other, and where no quantizer runs
SHORT_UPDATES, FALLBACK_UPDATES = 500, 100
#: optimizer steps that are scanned: as many as `precdoctor scan` takes, and with --quick
SCANNED, QUICK_SCANNED = 50, 12
#: tokens of the text where the validation text is one of its own
CLEAN_TOKENS = 100_000

#: trained for `UPDATES`; what follows the first few shows one thing each
MAIN = (
    "fp4-reported", "baseline", "untied", "ste-bnb-fp4", "severed-none", "severed-int8",
    "severed-retied", "severed-head", "severed-blocks",
)  # fmt: skip
QUICK_MAIN = MAIN[:6]
#: trained for `SHORT_UPDATES`: other formats, which layers are sensitive, learning rates
SHORT = (
    "untied", "ste-bnb-fp4", "ste-nvfp4", "ste-mxfp4", "ste-nf4", "ste-int8",
    "ste-float32-attention", "ste-float32-ffn", "ste-float32-head",
    "fp4-reported", "severed-low-lr", "severed-high-lr",
)  # fmt: skip
#: trained for `SHORT_UPDATES`, on all of the text but for a part of its own
CLEAN = ("untied", "ste-bnb-fp4", "fp4-reported")
#: evaluations of a run, and the recipes of which a quick one needs as many
LOOKS = 5
FOLLOWED = ("fp4-reported", "ste-bnb-fp4")
#: recipes that are scanned, by the name of the files that are written
SCANS = {"scan-reported": "fp4-reported", "scan-twin": "ste-bnb-fp4"}
#: folder of what the runs print and measure, in the folder of the case
LOGS = "runs"
#: the format of the report, and those it is compared with
REPORTED_FORMAT = "bnb-fp4"
FORMATS = (
    REPORTED_FORMAT, "nf4", "mxfp4", "mxfp4:ceil", "nvfp4", "e2m1:tensor", "e2m1:channel",
    "int4:channel", "int8:channel", "e4m3fn:tensor", "bfloat16",
)  # fmt: skip
#: of which the size at which the report was made is computed
SIZED = ("baseline", "untied", "fp4-reported", "severed-none", "ste-bnb-fp4", "ste-retied")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What one run of train.py measured."""

    recipe: str
    updates: int
    #: at each evaluation: step, update, loss, accuracy; error and sqnr_db where weights are quantized
    history: Sequence[Mapping[str, float]]
    #: on text of its own
    honest_loss: float
    honest_accuracy: float
    #: with the same weights, not quantized; None where none is quantized
    unquantized_loss: float | None
    #: of training; on a CPU, what the process itself took
    seconds: float
    #: of a weight, if weight decay alone had acted on it
    kept_by_decay: float
    majority_share: float
    bigram_ceiling: float
    context_free_share: float
    parameters: Mapping[str, int]
    held_bytes: float
    packed_bytes: float
    training_bytes: float

    @property
    def loss(self) -> float:
        """Return the validation loss at the end."""
        return self.history[-1]["loss"]

    @property
    def accuracy(self) -> float:
        """Return the share of right predictions at the end."""
        return self.history[-1]["accuracy"]

    @property
    def perplexity(self) -> float:
        """Return e to the loss at the end."""
        return math.exp(self.loss)

    @property
    def errors(self) -> list[float]:
        """Return the mean absolute quantization error at each evaluation; empty without a quantizer."""
        return [entry["error"] for entry in self.history if "error" in entry]

    @property
    def sqnr_db(self) -> list[float]:
        """Return the signal-to-quantization-noise ratio at each evaluation, in decibels."""
        return [entry["sqnr_db"] for entry in self.history if entry.get("sqnr_db") is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What all runs of the case showed."""

    #: folder of the program
    sample: Path
    #: by the name of the run: a recipe, or short-, clean- and a recipe, cpu-fallback
    trained: Mapping[str, Training]
    #: by recipe, at the report's size: parameters, bytes, flops
    sizes: Mapping[str, Mapping[str, Any]]
    #: by format, of the report's weights as they are before training: mean absolute error and SQNR in dB
    errors: Mapping[str, Mapping[str, float]]
    #: the program of the report, scanned
    reported: Seen
    #: the same with a straight-through estimator, scanned
    twin: Seen
    #: report of `precdoctor treat` on the program of the report
    treated: Mapping[str, Any]
    #: format of autocast on CUDA where none is named
    autocast_format: str

    def has(self, *runs: str) -> bool:
        """Return whether all of these runs were made."""
        return all(run in self.trained for run in runs)


def commands(sample: Path, out: Path, options: Options) -> dict[str, list[str]]:
    """Return what is run side by side, by name; the longest first, so that no core idles at the end."""
    updates = options.steps or (QUICK_UPDATES if options.quick else UPDATES)
    short = min(SHORT_UPDATES, updates)
    scanned = min(QUICK_SCANNED if options.quick else SCANNED, updates)
    found = {"treat": _treat(sample, out, scanned)}

    def train(name: str, recipe: str, updates: int, *more: str) -> None:
        found[name] = _train(sample, out, name, recipe, "--updates", str(updates), *more)

    for recipe in QUICK_MAIN if options.quick else MAIN:
        # a quick run is looked at as often only where the way is of interest, not just the end
        looks = LOOKS if recipe in FOLLOWED or not options.quick else 1
        train(recipe, recipe, updates, "--eval-every", str(max(updates // looks, 1)))
    if not options.quick:
        for recipe in SHORT:
            train(f"short-{recipe}", recipe, short)
        for recipe in CLEAN:
            train(f"clean-{recipe}", recipe, short, "--split", "clean", "--tokens", str(CLEAN_TOKENS))
    formats = [REPORTED_FORMAT] if options.quick else FORMATS
    found["errors"] = [sys.executable, "-m", "precdoctor.reproduce.fp4.errors", *formats]
    for name, recipe in SCANS.items():
        argv = ("--recipe", recipe, "--device", "cpu")
        found[name] = scan_command(sample / "train.py", argv, out / name, "--steps", str(scanned))
    train("cpu-fallback", "fp4-reported", min(FALLBACK_UPDATES, updates), "--cpu-fallback")
    found["sizes"] = [sys.executable, str(sample / "sizes.py"), *SIZED, "--size", "full"]
    return found


def read(sample: Path, out: Path, names: Iterable[str]) -> Measured:
    """Return what the runs wrote into the folder."""
    trained = {name: _results(out, name) for name in names if _results(out, name).is_file()}
    return Measured(
        sample=sample,
        trained={name: training(_json(file)) for name, file in trained.items()},
        sizes=_json(out / LOGS / "sizes.out"),
        errors=_json(out / LOGS / "errors.out"),
        reported=read_scan(out / "scan-reported"),
        twin=read_scan(out / "scan-twin"),
        treated=_json(out / "treat.json"),
        autocast_format=_autocast_format(),
    )


def training(results: Mapping[str, Any]) -> Training:
    """Return what train.py has written as results."""
    text, honest = results["text"], results["honest"]
    as_written = ["recipe", "updates", "history", "seconds", "kept_by_decay", "context_free_share"]
    as_written += ["parameters", "held_bytes", "packed_bytes", "training_bytes"]
    return Training(
        honest_loss=honest["loss"],
        honest_accuracy=honest["accuracy"],
        unquantized_loss=results["unquantized"] and results["unquantized"]["loss"],
        majority_share=text["majority_share"],
        bigram_ceiling=text["bigram_ceiling"],
        **{field: results[field] for field in as_written},
    )


def _train(sample: Path, out: Path, name: str, recipe: str, *arguments: str) -> list[str]:
    results = _results(out, name)
    results.unlink(missing_ok=True)  # nothing of an earlier run passes for this one's
    command = [sys.executable, str(sample / "train.py"), "--recipe", recipe, "--device", "cpu"]
    return [*command, *arguments, "--results", str(results)]


def _treat(sample: Path, out: Path, steps: int) -> list[str]:
    command = [sys.executable, "-m", "precdoctor", "treat", "--fresh", "--fail-on", "never"]
    for option, suffix in (("--json", ".json"), ("--html", ".html")):
        file = out / f"treat{suffix}"
        file.unlink(missing_ok=True)
        command += [option, str(file)]
    command += ["--steps", str(max(steps, 10))]
    return [*command, str(sample / "train.py"), "--recipe", "fp4-reported", "--device", "cpu"]


def _autocast_format() -> str:
    import torch

    return str(torch.get_autocast_dtype("cuda")).removeprefix("torch.")


def _results(out: Path, name: str) -> Path:
    return out / LOGS / f"{name}.json"


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
