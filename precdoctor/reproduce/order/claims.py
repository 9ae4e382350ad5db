"""What is known of size and order, each with the numbers of this run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from statistics import fmean

from precdoctor.report.words import percent
from precdoctor.reproduce.order.runs import (
    INT4,
    INT8,
    LENGTHS_WIDTH,
    PRETRAINED,
    Difference,
    Measured,
    Trained,
)
from precdoctor.reproduce.reading import claim, finding
from precdoctor.reproduce.scenario import Claim

#: standard errors from which a difference, over all seeds, counts as seen
CLEAR = 3
#: loss in nats per byte below which a difference is of no account, seen or not: a thousandth of the loss
NEGLIGIBLE = 0.002
#: share of what adapters gain from which it counts as lost when they are merged
MOST = 0.5


def claims(m: Measured) -> list[Claim]:
    """Return what is known; what was not measured is left out."""
    parts = (_size, _training, _different_artefacts, _adapters, _not_quantized, _observed)
    return [said for part in parts for said in part(m)]


def cost(run: Trained, fmt: str) -> Difference:
    """Return what rounding the pretrained model to a format costs, on the text that it was trained on."""
    return run.difference(f"base {fmt}", "base", "old")


def mean_cost(runs: Iterable[Trained], fmt: str) -> float:
    """Return the cost of a format over all seeds."""
    return fmean(cost(run, fmt).mean for run in runs)


def gain(run: Trained, fmt: str) -> Difference:
    """Return by how much rounding while fine-tuning is better than rounding afterwards."""
    return run.difference(f"finetune {fmt}", f"qat {fmt}", "new")


def _size(m: Measured) -> Iterator[Claim]:
    every = [cost(run, INT8).mean for runs in m.trained.values() for run in runs]
    alike = [runs for (_, steps), runs in m.trained.items() if steps == PRETRAINED and runs[0].dim >= 32]
    costs = [mean_cost(runs, INT4) for runs in alike]
    widths = ", ".join(str(runs[0].dim) for runs in alike)
    yield claim(
        "INT8 hurts a model of any size",
        f"by less than {NEGLIGIBLE}",
        f"{min(every):+.4f} to {max(every):+.4f}",
        holds=max(map(abs, every)) < NEGLIGIBLE,
    )
    yield claim(
        f"INT4 hurts models of width {widths}, trained alike",
        "the larger the less",
        ", ".join(f"{value:+.4f}" for value in costs),
        holds=all(one > other for one, other in pairwise(costs)),
    )
    smallest, largest = alike[0], alike[-1]
    if len(smallest) > 1:
        yield _more(f"... width {smallest[0].dim} more than {largest[0].dim}, by", _apart(smallest, largest))
    too_small = m.trained.get((16, PRETRAINED))
    if too_small:
        apart = _apart(too_small, smallest)
        yield claim(
            f"... but width 16, which learns least, above width {smallest[0].dim} by",
            "nothing",
            _lines(apart),
            holds=Difference.over(apart).z < CLEAR,
        )


def _training(m: Measured) -> Iterator[Claim]:
    by_steps = {steps: runs for (width, steps), runs in m.trained.items() if width == LENGTHS_WIDTH}
    lengths = ", ".join(map(str, by_steps))
    costs = [mean_cost(runs, INT4) for runs in by_steps.values()]
    yield claim(
        f"INT4 hurts width {LENGTHS_WIDTH} after {lengths} steps",
        "the longer trained the more",
        ", ".join(f"{value:+.4f}" for value in costs),
        holds=all(one < other for one, other in pairwise(costs)),
    )
    short, large = next(iter(by_steps.values())), list(m.trained.values())[-1]
    yield _more(
        f"size alone does not decide: width {large[0].dim} after {large[0].pretrain_steps} steps "
        f"loses more than width {short[0].dim} after {short[0].pretrain_steps}, by",
        _apart(large, short),
    )


def _different_artefacts(m: Measured) -> Iterator[Claim]:
    runs = m.orders
    differ = [run.models[f"qat {INT4}"]["codes_differ"]["finetune"] for run in runs]
    same = [run.bytes_of(f"qat {INT4}") == run.bytes_of(f"finetune {INT4}") for run in runs]
    yield claim(
        "INT4 codes that differ between the orders, format and bytes alike",
        "over 5 %",
        _percents(differ),
        holds=all(same) and min(differ) > 0.05,
    )
    yield _more(
        "INT4, loss: fine-tuned then rounded, above rounded while fine-tuned, by",
        [gain(run, INT4) for run in runs],
    )
    near = [
        [run.models[f"{order} {INT4}"]["sqnr_db"]["finetune"] for order in ("qat", "finetune")]
        for run in runs
    ]
    yield claim(
        "... though its weights are no nearer to those of float32: SQNR",
        "not above",
        ", ".join(f"{qat:.1f} against {rounded:.1f} dB" for qat, rounded in near),
        holds=all(qat <= rounded for qat, rounded in near),
    )
    forgotten = [run.difference("finetune", "base", "old").mean for run in runs]
    between = [run.difference(f"qat {INT4}", f"finetune {INT4}", "old").mean for run in runs]
    yield claim(
        "the old text suffers from the fine-tuning, not from the order",
        "over 3 times as much",
        f"{min(forgotten):+.3f}; between orders {', '.join(f'{d:+.3f}' for d in between)}",
        holds=min(forgotten) > 3 * max(map(abs, between)),
    )
    if f"qat {INT8}" in runs[0].models:
        differ = [run.models[f"qat {INT8}"]["codes_differ"]["finetune"] for run in runs]
        gains = [gain(run, INT8) for run in runs]
        yield claim(
            "INT8: codes that differ, and what it is worth",
            f"over 5 %, under {NEGLIGIBLE}",
            "\n".join(f"{percent(share)}; {d}" for share, d in zip(differ, gains, strict=True)),
            holds=min(differ) > 0.05 and all(abs(d.mean) < NEGLIGIBLE for d in gains),
        )


def _adapters(m: Measured) -> Iterator[Claim]:
    runs, stored = m.orders, f"lora {INT4}"
    yield _more(
        "INT4 then adapters, loss below adapters then INT4, by",
        [run.difference(f"finetune-lora {INT4}", stored, "new") for run in runs],
    )
    codes = [run.models[stored]["codes_differ"]["base"] for run in runs]
    more = [run.bytes_of(stored) / run.bytes_of(f"finetune {INT4}") - 1 for run in runs]
    yield claim(
        "... its INT4 codes changed by the training; bytes more, of the adapters",
        "none; over 25 %",
        f"{_percents(codes)}; {_percents(more)}",
        holds=not any(codes) and min(more) > 0.25,
    )
    yield _more(
        "... adapters merged and rounded again: loss above, by",
        [run.difference(f"lora-merged {INT4}", stored, "new") for run in runs],
    )
    left = [run.merging[INT4] for run in runs if run.merging]
    yield claim(
        "... rounding error against the change that the adapters mean; codes that it leaves",
        "over 10 %",
        "; ".join(f"{percent(part['error'])}, {percent(part['unchanged'])}" for part in left),
        holds=min(part["error"] for part in left) > 0.1,
    )
    lost = merging_loses(runs, INT4)
    yield claim("... of the gain, lost by it", "over 50 %", percent(lost), holds=lost > MOST)


def _not_quantized(m: Measured) -> Iterator[Claim]:
    runs = m.orders
    sizes = {run.bytes_of(f"dequantized {INT4}") for run in runs}
    yield claim(
        "INT4 to float32, then fine-tuned: stored",
        "those of float32",
        ", ".join(f"{size:,} bytes" for size in sorted(sizes)),
        holds=sizes == {run.bytes_of("finetune") for run in runs},
    )
    again = [run.difference(f"dequantized-again {INT4}", f"finetune {INT4}", "new") for run in runs]
    yield claim(
        "... rounded again: loss above fine-tuned then rounded",
        "not below",
        _lines(again),
        holds=Difference.over(again).z > -CLEAR,
    )
    changed = [run.models[f"codes {INT4}"]["codes_differ"]["base"] for run in runs]
    yield claim(
        "INT4 codes trained by themselves: share that changes",
        "under 1 %",
        _percents(changed),
        holds=max(changed) < 0.01,
    )


def _observed(m: Measured) -> Iterator[Claim]:
    for name, recipe in (("scan-qat", "rounded while fine-tuned"), ("scan-lora", "adapters on INT4")):
        seen = m.scans[name].report["verdict"]
        yield claim(f"precdoctor scan, {recipe}", "healthy", seen)
    found = finding(m.scans["scan-codes"], "PD106")
    yield claim(
        "precdoctor scan, codes trained by themselves",
        "ill: PD106",
        m.scans["scan-codes"].report["verdict"] + (": PD106" if found else ""),
    )


def merging_loses(runs: Sequence[Trained], fmt: str) -> float:
    """Return the share of what adapters on quantized weights gain that is lost when they are merged."""
    gained = fmean(run.difference(f"finetune-lora {fmt}", f"lora {fmt}", "new").mean for run in runs)
    lost = fmean(run.difference(f"lora-merged {fmt}", f"lora {fmt}", "new").mean for run in runs)
    return lost / gained


def clearly_more(seeds: Sequence[Difference]) -> bool:
    """Return whether a difference is above 0 with every seed, and clearly so over all."""
    return all(d.mean > 0 for d in seeds) and Difference.over(seeds).z > CLEAR


def _more(what: str, seeds: Sequence[Difference]) -> Claim:
    return claim(what, f"over {CLEAR} standard errors", _lines(seeds), holds=clearly_more(seeds))


def _apart(one: Sequence[Trained], other: Sequence[Trained]) -> list[Difference]:
    """Return by how much INT4 costs models more than others, seed by seed."""
    pairs = [(cost(a, INT4), cost(b, INT4)) for a, b in zip(one, other, strict=True)]
    return [Difference(mean=a.mean - b.mean, error=math.hypot(a.error, b.error)) for a, b in pairs]


def _lines(seeds: Sequence[Difference]) -> str:
    return "\n".join(map(str, seeds))


def _percents(shares: Iterable[float]) -> str:
    return ", ".join(percent(share) for share in shares)
