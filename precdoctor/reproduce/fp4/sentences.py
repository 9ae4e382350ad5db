"""What the report says, sentence by sentence: confirmed or refuted, with the number that decides it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from precdoctor.report.words import percent
from precdoctor.reproduce.fp4.diagnosis import (
    AT_CEILING,
    CURED,
    EQUAL_LOSS,
    NOISE,
    gap_closed,
    is_context_free,
)
from precdoctor.reproduce.fp4.runs import REPORTED_FORMAT, Measured
from precdoctor.reproduce.reading import claim
from precdoctor.reproduce.scenario import Claim

#: mean magnitude of the report's weights before training, N(0, 0.02)
MEAN_MAGNITUDE = 0.02 * math.sqrt(2 / math.pi)
#: range of accuracies within which a run counts as flat
FLAT = 0.03
#: share of predictions that follow from the current token, from which a model counts as context-free
CONTEXT_FREE = 0.95


def claims(m: Measured) -> list[Claim]:
    """Return the sentences in the order of the report; those whose runs were not made are left out."""
    parts = (_setup, _results, _errors, _causes, _memory_and_time, _advice)
    return [said for part in parts for said in part(m)]


def _confirmed(sentence: str, number: str, *, holds: bool) -> Claim:
    """Return a sentence that is known to be right; ``holds`` when this run's number says so too."""
    return claim(sentence, "confirmed", number, holds=holds)


def _refuted(sentence: str, number: str, *, holds: bool) -> Claim:
    """Return a sentence that is known to be wrong; ``holds`` when this run's number says so too."""
    return claim(sentence, "refuted", number, holds=holds)


def _setup(m: Measured) -> Iterator[Claim]:
    sizes, baseline = m.sizes["fp4-reported"]["parameters"], m.sizes["baseline"]["parameters"]["total"]
    yield _confirmed(
        "FP4 parameters 29,491,200, FP32 18,879,360; the baseline has 29,496,192",
        f"{sizes['quantized']:,}, {sizes['float32']:,}; {baseline:,}",
        holds=(sizes["quantized"], sizes["float32"], baseline) == (29_491_200, 18_879_360, 29_496_192),
    )
    more = sizes["total"] - baseline
    yield _refuted(
        "48.4M parameters include quantization overhead",
        f"{more:,} more ({percent(more / baseline)}) because head and embedding are not tied",
        holds=more == 49_152 * 384,
    )
    yield _refuted(
        "mixed precision: BF16",
        f"autocast on CUDA without a dtype computes in {m.autocast_format}",
        holds=m.autocast_format != "bfloat16",
    )
    last = m.trained["fp4-reported"].history[-1]
    yield _refuted(
        "5,000 training steps",
        f"4 batches to an update: {last['step']:,.0f} steps here are {last['update']:,.0f} updates",
        holds=last["step"] == 4 * last["update"],
    )


def _results(m: Measured) -> Iterator[Claim]:
    run, baseline = m.trained["fp4-reported"], m.trained["baseline"]
    looks = [look["accuracy"] for look in run.history[len(run.history) // 2 :]]
    yield _confirmed(
        "FP4 failed to learn: accuracy is flat, far below the baseline's",
        f"{percent(min(looks))} to {percent(max(looks))} in the second half; {percent(baseline.accuracy)}",
        holds=max(looks) - min(looks) < FLAT and run.accuracy < baseline.accuracy,
    )
    yield _refuted(
        "it is stuck at random baseline, about 1/vocab_size^0.5",
        f"{percent(run.accuracy)} is the bigram ceiling {percent(run.bigram_ceiling)}; "
        f"1/sqrt(1024) is 3.1 %, the commonest token {percent(run.majority_share)}",
        holds=abs(run.accuracy - run.bigram_ceiling) < AT_CEILING,
    )
    yield _refuted(
        "it never learned beyond random token prediction",
        f"{percent(run.context_free_share)} of what it predicts follows from the current token",
        holds=run.context_free_share > CONTEXT_FREE,
    )
    yield _refuted(
        "the baseline achieved strong language modeling",
        f"the split leaks: on unseen text {percent(baseline.honest_accuracy)} right, "
        f"loss {baseline.honest_loss:.2f}",
        holds=baseline.honest_accuracy < baseline.accuracy / 2,
    )


def _errors(m: Measured) -> Iterator[Claim]:
    fidelity = m.errors[REPORTED_FORMAT]
    relative = fidelity["mean_absolute_error"] / MEAN_MAGNITUDE
    yield _refuted(
        "the error relative to weights is about 0.1-1 %",
        f"{percent(relative)}, SQNR {fidelity['sqnr_db']:.1f} dB",
        holds=relative > 0.1,
    )
    errors, sqnr = m.trained["ste-bnb-fp4"].errors, m.trained["ste-bnb-fp4"].sqnr_db
    yield _refuted(
        "a constant error means a stable implementation",
        f"weights that learn: {errors[0]:.4f} to {errors[-1]:.4f}, SQNR {sqnr[0]:.1f} to {sqnr[-1]:.1f} dB",
        holds=errors[-1] > 1.02 * errors[0] and abs(sqnr[-1] - sqnr[0]) < 1,
    )


def _causes(m: Measured) -> Iterator[Claim]:
    run, cured, healthy = (m.trained[name] for name in ("fp4-reported", "ste-bnb-fp4", "untied"))
    bare = m.trained["severed-none"]
    without = m.sizes["fp4-reported"]["parameters"]["without_gradient"]
    yield _refuted(
        "small updates are lost to quantization thresholds",
        f"no updates: {without:,} weights have no gradient at all",
        holds=without == 29_491_200,
    )
    yield _refuted(
        "quantization noise accumulates across layers",
        f"loss {bare.loss:.3f} without quantization, {run.loss:.3f} in FP4",
        holds=abs(bare.loss - run.loss) < EQUAL_LOSS,
    )
    yield _refuted(
        "4 bits are insufficient for gradient-based optimization; QKV is destroyed",
        f"same FP4 with a gradient: loss {cured.loss:.3f}, {percent(cured.accuracy)} right; "
        f"float32 {healthy.loss:.3f}, {percent(healthy.accuracy)}",
        holds=gap_closed(m, "ste-bnb-fp4") > CURED,
    )
    if m.has("short-severed-low-lr", "short-fp4-reported"):
        low, same = m.trained["short-severed-low-lr"], m.trained["short-fp4-reported"]
        yield _refuted(
            "smaller learning rates might be needed",
            f"lr x 0.1: loss {low.loss:.3f} in place of {same.loss:.3f}, {percent(low.accuracy)} right",
            holds=low.loss > same.loss - EQUAL_LOSS and is_context_free(low),
        )


def _memory_and_time(m: Measured) -> Iterator[Claim]:
    run, tied, untied = (m.sizes[name] for name in ("fp4-reported", "baseline", "untied"))
    held, base = run["held_bytes"], tied["held_bytes"]
    yield _refuted(
        "memory savings 45.7 %",
        f"1 byte per FP4 weight, none was so small; held {held / 1e6:.1f} MB against {base / 1e6:.1f}",
        holds=abs(run["estimated_savings"] - 0.457) < 5e-4 and held > base,
    )
    yield _refuted(
        "actual savings 13 MB (11 %)",
        f"{(held - base) / 1e6:+.1f} MB ({100 * (held / base - 1):+.0f} %)",
        holds=held > base,
    )
    saved = 1 - run["flops"] / untied["flops"]
    bare = 1 - m.sizes["severed-none"]["flops"] / untied["flops"]
    yield _refuted(
        "10 % faster by memory bandwidth",
        f"{percent(saved)} of the FLOPs are left out with the gradients; unquantized also {percent(bare)}",
        holds=saved > 0.25 and saved == bare,
    )


def _advice(m: Measured) -> Iterator[Claim]:
    int8, run = m.trained["severed-int8"], m.trained["fp4-reported"]
    yield _refuted(
        "FP8 or INT8 may preserve learning capability",
        f"INT8, severed alike: loss {int8.loss:.3f}, FP4 {run.loss:.3f}; {percent(int8.accuracy)} right",
        holds=abs(int8.loss - run.loss) < EQUAL_LOSS,
    )
    if m.has("severed-head", "severed-blocks"):
        head, blocks, cured = (m.trained[f"{run}"].loss for run in _HYBRID)
        yield _refuted(
            "hybrid precision: FP4 for less critical layers",
            f"what is not FP4 trains again: head {head:.2f}, blocks {blocks:.2f}; STE on all {cured:.2f}",
            holds=cured < min(head, blocks),
        )
    if m.has("short-untied", *_SENSITIVITY):
        everywhere, *kept = (m.trained[run].loss for run in _SENSITIVITY)
        gained = [everywhere - loss for loss in kept]
        lost = m.trained["fp4-reported"].loss - m.trained["untied"].loss
        yield _refuted(
            "attention is highly sensitive to FP4",
            f"in float32 it gains {gained[0]:.2f} of the {lost:.2f} that were lost; "
            f"the FFN {gained[1]:.2f}, the head {gained[2]:.2f}",
            holds=max(gained) < NOISE * lost,
        )
    yield _confirmed(
        "quantization-aware training is needed",
        f"a straight-through estimator closes {percent(gap_closed(m, 'ste-bnb-fp4'))} of the gap",
        holds=gap_closed(m, "ste-bnb-fp4") > CURED,
    )
    yield _refuted(
        "FP4 is viable for inference only",
        f"trained in FP4: {percent(m.trained['ste-bnb-fp4'].accuracy)} right, as reported "
        f"{percent(m.trained['fp4-reported'].accuracy)}",
        holds=gap_closed(m, "ste-bnb-fp4") > CURED,
    )


_HYBRID = ("severed-head", "severed-blocks", "ste-bnb-fp4")
_SENSITIVITY = ("short-ste-bnb-fp4", "short-ste-float32-attention", "short-ste-float32-ffn",
                "short-ste-float32-head")  # fmt: skip
