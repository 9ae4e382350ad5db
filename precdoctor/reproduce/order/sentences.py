"""What the document says of precision, sentence by sentence, with the number that decides it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from precdoctor.formats import BFLOAT16, E4M3FN, FLOAT16, FLOAT32, FLOAT64
from precdoctor.report.words import percent
from precdoctor.reproduce.order.claims import (
    CLEAR,
    NEGLIGIBLE,
    clearly_more,
    cost,
    gain,
    mean_cost,
    merging_loses,
)
from precdoctor.reproduce.order.runs import INT4, INT8, LENGTHS_WIDTH, PRETRAINED, Measured, Trained
from precdoctor.reproduce.reading import claim
from precdoctor.reproduce.scenario import Claim


def claims(m: Measured) -> list[Claim]:
    """Return the sentences in the order of the document; those that say the same are said once."""
    parts = (_mixed_precision, _quantization, _order, _words)
    return [said for part in parts for said in part(m)]


def _confirmed(sentence: str, number: str, *, holds: bool) -> Claim:
    """Return a sentence that is known to be right; ``holds`` when this run's number says so too."""
    return claim(sentence, "confirmed", number, holds=holds)


def _in_part(sentence: str, number: str, *, holds: bool) -> Claim:
    """Return a sentence that is right only with what is added to it."""
    return claim(sentence, "in part", number, holds=holds)


def _refuted(sentence: str, number: str, *, holds: bool) -> Claim:
    """Return a sentence that is known to be wrong."""
    return claim(sentence, "refuted", number, holds=holds)


def _mixed_precision(m: Measured) -> Iterator[Claim]:
    run = m.orders[0]
    assert run.precisions is not None
    pure = run.difference("bfloat16", "finetune", "new")
    mixed = run.difference("autocast", "finetune", "new")
    float32, autocast = run.precisions["finetune"], run.precisions["autocast"]
    yield _confirmed(
        "weight update arithmetic is FP32, so the update itself is precise",
        f"with weights and updates in bfloat16 the loss is {pure} against float32",
        holds=pure.z > CLEAR,
    )
    yield _in_part(
        "errors of the weights compound across millions of steps",
        f"{pure.mean:+.4f} after {run.steps} steps: what bfloat16 cannot hold of an update is lost at once",
        holds=pure.z > CLEAR,
    )
    yield _confirmed(
        "activations and gradients can tolerate the noise; not noticeably degraded",
        f"operations in bfloat16 by autocast: {mixed}",
        holds=abs(mixed.mean) < NEGLIGIBLE,
    )
    saved = 1 - autocast["saved"] / float32["saved"]
    yield _in_part(
        "substantial memory savings; mixed precision shrinks training",
        f"{percent(saved)} of what is kept for the backward pass; nothing of weights, gradients and Adam: "
        f"4 x {autocast['weights']:,} bytes as in float32",
        holds=saved > 0.1 and autocast["weights"] == float32["weights"],
    )
    largest = [fmt.max for fmt in (FLOAT32, BFLOAT16, FLOAT16)]
    yield _confirmed(
        "BF16 has FP32's exponent range; FP16 does not",
        "largest {:.3g}, {:.3g}, FP16 {:,.0f}".format(*largest),
        holds=BFLOAT16.max_exponent == FLOAT32.max_exponent != FLOAT16.max_exponent,
    )
    yield _confirmed(
        "the same parameter exists at multiple precisions during one step",
        f"{autocast['copies']} matrices in float32 and in bfloat16 at once",
        holds=autocast["copies"] > float32["copies"] == 0,
    )


def _quantization(m: Measured) -> Iterator[Claim]:
    every = [run for runs in m.trained.values() for run in runs]
    halved = [abs(cost(run, fmt).mean) for run in every for fmt in ("float16", "bfloat16")]
    yield _confirmed(
        "quantization often works at FP32 to FP16",
        f"weights in float16 or bfloat16 cost at most {max(halved):.4f} in {len(every)} models",
        holds=max(halved) < NEGLIGIBLE,
    )
    small, large = (m.trained[width, PRETRAINED] for width in (LENGTHS_WIDTH, max(w for w, _ in m.trained)))
    short = next(runs for (width, _), runs in m.trained.items() if width == LENGTHS_WIDTH)
    yield _in_part(
        "INT4 that works for a strong model may noticeably degrade a smaller one",
        f"trained alike, width {small[0].dim} {mean_cost(small, INT4):+.3f}, {large[0].dim} "
        f"{mean_cost(large, INT4):+.3f}; but {short[0].dim} trained for {short[0].pretrain_steps} steps "
        f"{mean_cost(short, INT4):+.3f}: how far it was trained counts too",
        holds=mean_cost(small, INT4) > mean_cost(large, INT4) > mean_cost(short, INT4),
    )


def _order(m: Measured) -> Iterator[Claim]:
    runs = m.orders
    differ = [run.models[f"qat {INT4}"]["codes_differ"]["finetune"] for run in runs]
    yield _confirmed(
        "the two orders produce different artifacts",
        f"{percent(min(differ))} of the INT4 codes differ; with adapters {_more_bytes(runs[0])} more bytes",
        holds=min(differ) > 0.05,
    )
    closed = [
        gain(run, INT4).mean / run.difference(f"finetune {INT4}", "finetune", "new").mean for run in runs
    ]
    again = [run.difference(f"dequantized-again {INT4}", f"finetune {INT4}", "new").mean for run in runs]
    yield _in_part(
        "quantize-then-fine-tune lets fine-tuning compensate for the rounding",
        f"rounded in each forward pass: {percent(fmean(closed))} of the loss; with adapters until they are "
        f"merged ({percent(merging_loses(runs, INT4))} lost); restored to float32 and "
        f"rounded again: none ({fmean(again):+.4f})",
        holds=min(closed) > 0.3,
    )
    gains = f"{fmean(gain(run, INT4).mean for run in runs):+.4f} at INT4"
    if f"qat {INT8}" in runs[0].models:
        gains += f", {fmean(gain(run, INT8).mean for run in runs):+.4f} at INT8"
    yield _confirmed(
        "fine-tune-then-quantize may degrade more under the rounding",
        gains,
        holds=clearly_more([gain(run, INT4) for run in runs]),
    )


def _words(m: Measured) -> Iterator[Claim]:
    runs = m.orders
    bits = [fmt.bits for fmt in (FLOAT64, FLOAT32, FLOAT16, BFLOAT16, E4M3FN)]
    yield _confirmed(
        "FP64, FP32, FP16, BF16, FP8 have 64, 32, 16, 16, 8 bits",
        ", ".join(map(str, bits)),
        holds=bits == [64, 32, 16, 16, 8],
    )
    whole = [run.difference("base whole numbers", "base", "old").mean for run in runs]
    int8 = [cost(run, INT8).mean for run in runs]
    yield _in_part(
        "INT8 / INT4 are integer formats (no fractional bits)",
        f"the codes are; weights are codes times a scale: INT8 costs {max(int8):+.4f}, "
        f"whole numbers without a scale {min(whole):+.2f}",
        holds=min(whole) > 1,
    )
    yield _refuted(
        "quantization is a post-training conversion",
        f"while fine-tuning: same format, same bytes, loss lower by {gain(runs[0], INT4).mean:.4f}",
        holds=clearly_more([gain(run, INT4) for run in runs]),
    )
    sizes = [run.bytes_of("base") / run.bytes_of(f"base {INT4}") for run in runs]
    yield _confirmed(
        "quantization shrinks deployed models",
        f"INT4 {min(sizes):.1f} times, not 8: scales, and embeddings that stay float32",
        holds=min(sizes) > 2,
    )


def _more_bytes(run: Trained) -> str:
    return percent(run.bytes_of(f"lora {INT4}") / run.bytes_of(f"finetune {INT4}") - 1)
