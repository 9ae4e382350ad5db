"""What a good diagnosis of the FP4 case says, in nine points, each with the number that decides it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from precdoctor.report.words import percent
from precdoctor.reproduce.fp4.runs import REPORTED_FORMAT, Measured, Training
from precdoctor.reproduce.reading import cause, claim, every, finding, line_of, named, number
from precdoctor.reproduce.scenario import Claim

#: quantized weights of the model at its small size: four in each of three blocks, and the head
QUANTIZED = 13
#: the call at which the gradient ends, in small_lm/layers.py
CALL = "quantize_fp4(self.weight.data)"
#: mean absolute error that the report's run logged at each of its five checkpoints, to so many digits
LOGGED_ERROR, LOGGED_DIGITS = 0.00193104457, 5e-10
#: share of the gap in loss between the model as reported and float32, from which a change counts as a cure
CURED = 0.9
#: share of right predictions within which a run is at the bigram ceiling
AT_CEILING = 0.02
#: difference in loss within which two runs count as equally bad
EQUAL_LOSS = 0.1
#: share of the gap up to which quantization noise does not explain it
NOISE = 0.05


def claims(m: Measured) -> list[Claim]:
    """Return the nine points; those whose runs were not made are left out."""
    points = (_severed, _frozen, _not_noise, _cured, _not_cured, _leaked, _float16, _memory, _on_cuda_only)
    return [
        claim(f"{count} {said.what}", said.expected, said.seen, holds=said.holds)
        for count, point in enumerate(points, start=1)
        for said in point(m)
    ]


def gap_closed(m: Measured, run: str) -> float:
    """Return how much of the gap in loss, as reported to float32, a run closes: 0 nothing, 1 all."""
    reported, healthy = m.trained["fp4-reported"].loss, m.trained["untied"].loss
    return (reported - m.trained[run].loss) / (reported - healthy)


def is_context_free(run: Training) -> bool:
    """Return whether a run is right no more often than knowing the current token alone allows."""
    return run.accuracy < run.bigram_ceiling + AT_CEILING


def with_packed_copy(size: Mapping[str, Any]) -> float:
    """Return the bytes of training float32 weights that are used through packed codes."""
    codes = float(size["packed_bytes"]) - 4 * float(size["parameters"]["float32"])
    return codes + float(size["training_bytes"])


def _severed(m: Measured) -> Iterator[Claim]:
    found = finding(m.reported, "PD601")
    rows = m.reported.report["parameters"]
    without = [row for row in rows if number(row, "gradient", "present") == 0]
    moved = [100 * number(row, "weight", "moved_share") for row in without]
    here, full = m.trained["fp4-reported"].parameters, m.sizes["fp4-reported"]["parameters"]
    line = line_of(m.sample / "small_lm" / "layers.py", CALL)
    yield claim("the doctor's verdict", "ill", m.reported.report["verdict"])
    yield claim("PD601 severed-quantizer", f"names {QUANTIZED} weights", f"names {len(named(found))} weights")
    yield claim("its cause: the call of the quantizer", f"layers.py:{line}", cause(found))
    yield claim(
        "weights without a gradient, here",
        f"{here['quantized']:,} of {here['total']:,}",
        f"{sum(row['numel'] for row in without):,} of {sum(row['numel'] for row in rows):,}",
    )
    yield claim(
        "... and at the report's size",
        "29,491,200 of 48,370,560",
        f"{full['without_gradient']:,} of {full['total']:,}",
    )
    yield every("... of which moved", "0 %", moved, lambda share: share == 0, ".3g", " %")


def _frozen(m: Measured) -> Iterator[Claim]:
    run = m.trained["fp4-reported"]
    first, last = run.errors[0], run.errors[-1]
    at_start = m.errors[REPORTED_FORMAT]["mean_absolute_error"]
    by_decay = first * run.kept_by_decay
    yield claim(
        "quantization error, first look to last",
        "the same to all digits",
        f"{first!r} at {'all' if len(set(run.errors)) == 1 else 'the first of'} {len(run.errors)} looks",
        holds=len(set(run.errors)) == 1 < len(run.errors),
    )
    yield claim(
        "... if gradients were 0, by decay alone",
        "lower",
        f"{by_decay:.7f} in place of {last:.7f}",
        holds=by_decay < 0.995 * last,
    )
    yield claim(
        "error of the report's weights before the first step, seed 42",
        f"as logged to its end: {LOGGED_ERROR}",
        f"{at_start:.11f}",
        holds=abs(at_start - LOGGED_ERROR) < LOGGED_DIGITS,
    )


def _not_noise(m: Measured) -> Iterator[Claim]:
    run, bare = m.trained["fp4-reported"], m.trained["severed-none"]
    gap = run.loss - m.trained["untied"].loss
    change = math.nan if run.unquantized_loss is None else run.unquantized_loss - run.loss
    yield claim(
        "loss with the quantizer bypassed",
        f"changes by under {percent(NOISE)} of the gap",
        f"{change:+.3f} of {gap:.2f}",
        holds=abs(change) < NOISE * gap,
    )
    yield claim(
        "loss of the severed model, not quantized",
        "as bad",
        f"{bare.loss:.3f}; in FP4 {run.loss:.3f}",
        holds=abs(bare.loss - run.loss) < EQUAL_LOSS,
    )


def _cured(m: Measured) -> Iterator[Claim]:
    yield _reaches_float32("loss with w + (Q(w) - w).detach()", m.trained["ste-bnb-fp4"], m.trained["untied"])
    for recipe, name in {
        "ste-nvfp4": "NVFP4",
        "ste-mxfp4": "MXFP4",
        "ste-nf4": "NF4",
        "ste-int8": "INT8",
    }.items():
        if m.has(f"short-{recipe}", "short-untied"):
            run, healthy = m.trained[f"short-{recipe}"], m.trained["short-untied"]
            yield _reaches_float32(f"... {name}, {run.updates} updates", run, healthy)
    yield claim("the doctor's verdict on it", "healthy", m.twin.report["verdict"])
    tried = (trial["outcome"] for trial in m.treated["trials"] if trial["remedy"] == "ste")
    yield claim("the remedy ste, tried by treat", "cured", next(tried, "not tried"))


def _not_cured(m: Measured) -> Iterator[Claim]:
    for run, name in {
        "short-severed-low-lr": "learning rate x 0.1",
        "short-severed-high-lr": "learning rate x 10",
        "severed-int8": "INT8 instead of FP4",
    }.items():
        if m.has(run):
            tried = m.trained[run]
            yield claim(
                f"{name}, {tried.updates:,} updates: right",
                f"bigram ceiling at most, to {percent(AT_CEILING)}",
                f"{percent(tried.accuracy)}; ceiling {percent(tried.bigram_ceiling)}",
                holds=is_context_free(tried),
            )
    if m.has("severed-head", "severed-blocks"):
        both = gap_closed(m, "severed-head"), gap_closed(m, "severed-blocks")
        yield claim(
            "FP4 in the head or the blocks only",
            "masks: closes a part",
            f"closes {percent(both[0])} or {percent(both[1])} of the gap; "
            f"the STE on all {percent(gap_closed(m, 'ste-bnb-fp4'))}",
            holds=all(0 < closed < CURED for closed in both),
        )
    if m.has("severed-retied"):
        retied, before = m.trained["severed-retied"], m.trained["fp4-reported"]
        yield claim(
            "tying embedding and head again first",
            "worse: under half as often right",
            f"loss {retied.loss:.2f}, {percent(retied.accuracy)} right; "
            f"untied {before.loss:.2f}, {percent(before.accuracy)}",
            holds=retied.accuracy < before.accuracy / 2,
        )


def _leaked(m: Measured) -> Iterator[Claim]:
    run = m.trained["baseline"]
    yield claim(
        "baseline: right on unseen text",
        "under half of the split's",
        f"{percent(run.honest_accuracy)}; on the split {percent(run.accuracy)}",
        holds=run.honest_accuracy < run.accuracy / 2,
    )
    if m.has("clean-untied", "clean-ste-bnb-fp4", "clean-fp4-reported"):
        runs = [m.trained[f"clean-{recipe}"] for recipe in ("untied", "ste-bnb-fp4", "fp4-reported")]
        healthy, cured, sick = (run.accuracy for run in runs)
        yield claim(
            "clean split: right in float32 / STE / as reported",
            "hardly apart: by 6 points at most",
            " / ".join(percent(run.accuracy) for run in runs),
            holds=max(healthy, cured) - sick < 0.06,
        )
        yield claim(
            "... loss of the same",
            "apart, by over 1",
            " / ".join(f"{run.loss:.2f}" for run in runs),
            holds=runs[2].loss - max(runs[0].loss, runs[1].loss) > 1,
        )


def _float16(m: Measured) -> Iterator[Claim]:
    training = m.sample / "small_lm" / "training.py"
    line = line_of(training, "torch.autocast(")
    given = "dtype" in training.read_text(encoding="utf-8").splitlines()[line - 1]
    yield claim(
        '"BF16": autocast on CUDA, no dtype given',
        "float16",
        f"a dtype at training.py:{line}" if given else m.autocast_format,
    )


def _memory(m: Measured) -> Iterator[Claim]:
    tied, untied = m.sizes["baseline"], m.sizes["untied"]["held_bytes"]
    run, cured = m.sizes["fp4-reported"], m.sizes["ste-bnb-fp4"]
    held, packed = run["held_bytes"], run["packed_bytes"]
    yield claim(
        "MB of weights held, float32 and cache, at the report's size",
        "210.1, +78 % on the baseline",
        f"{held / 1e6:.1f}, {100 * (held / tied['held_bytes'] - 1):+.0f} % on the baseline",
    )
    yield claim(
        "MB if packed, without float32 weights",
        "92.1: -21.9 %, on untied -52.4 %",
        f"{packed / 1e6:.1f}: {_change(packed, tied['held_bytes'])}, on untied {_change(packed, untied)}",
    )
    right = [with_packed_copy(size) for size in (cured, m.sizes["ste-retied"])]
    yield claim(
        "MB to train: baseline, as run, done right untied / tied",
        "471.9, 436.6, 790.5 / 488.5",
        f"{tied['training_bytes'] / 1e6:.1f}, {run['training_bytes'] / 1e6:.1f}, "
        f"{right[0] / 1e6:.1f} / {right[1] / 1e6:.1f}",
    )


def _on_cuda_only(m: Measured) -> Iterator[Claim]:
    run, reported = m.trained["cpu-fallback"], m.trained["fp4-reported"]
    yield claim(
        "the code's way without CUDA: quantization error",
        "0",
        f"{run.errors[-1]:g}",
    )
    yield claim(
        f"... and its loss after {run.updates} updates",
        "below that on the GPU's way",
        f"{run.loss:.2f}; as reported {reported.loss:.2f} after {reported.updates:,}",
        holds=run.loss < reported.loss,
    )


def _reaches_float32(what: str, run: Training, healthy: Training) -> Claim:
    return claim(
        what,
        f"within {EQUAL_LOSS} of float32",
        f"{run.loss:.3f}; float32 {healthy.loss:.3f}",
        holds=run.loss - healthy.loss < EQUAL_LOSS,
    )


def _change(value: float, base: float) -> str:
    return f"{100 * (value / base - 1):+.1f} %"
