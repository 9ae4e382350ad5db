"""The BF16 case: a model cast to bfloat16, whose norms freeze at 1.0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from precdoctor.reproduce.reading import (
    LAST,
    cause,
    claim,
    edqs,
    every,
    extent,
    finding,
    last_loss,
    line_of,
    magnitudes,
    named,
    number,
    shares,
    sign,
)
from precdoctor.reproduce.scenario import Claim, Options, Outcome, Scenario, Seen, sample_models, scan, table

#: EDQ (1 = descent as the optimizer meant it) above which a parameter keeps learning; rule PD102 warns below
_LEARNS_EDQ = 0.9
#: arguments of train.py by the name of the run; the names are those of the files that are written
_RUNS = {
    "bfloat16": ("--device", "cpu"),  # the same numbers on every machine
    "float32": ("--device", "cpu", "--dtype", "float32"),
}
#: the line of train.py that is to blame
_CAST = "model.to(dtype=torch.bfloat16)"
#: RMSNorm weights of the model: four per layer (attention, its queries and keys, experts) and the last
_NORMS = 13


def claims(sample: Path, seen: Mapping[str, Seen]) -> list[Claim]:
    """Return what must hold, from the folder of the program and what its runs showed."""
    sick, twin = seen["bfloat16"], seen["float32"]
    ours, theirs = last_loss(sick), last_loss(twin)
    return [
        *_frozen_norms(sample, sick),
        *_learning_norms(twin),
        claim(
            f"mean loss of the last {LAST} steps, bfloat16 against float32",
            "higher",
            f"{ours:.3f} against {theirs:.3f}",
            holds=ours > theirs,
        ),
    ]


def _frozen_norms(sample: Path, sick: Seen) -> list[Claim]:
    """Return what is known of the run in bfloat16: norm weights of 1.0, updates below half an ulp."""
    norms = _norms(sick)
    names = {norm["name"] for norm in norms}
    matrices = [row for row in sick.report["parameters"] if len(row["shape"]) == 2]
    found = finding(sick, "PD101")
    blamed = named(found)
    reached = sum(
        number(norm, "gradient", "present") > 0 and number(norm, "updates", "intended") > 0 for norm in norms
    )
    at_one = sum(magnitudes(norm) == (1, 1) and number(norm, "weight", "moved_share") == 0 for norm in norms)
    ups, downs = (
        sum(number(norm, "updates", f"{way}_applied") for norm in norms) for way in ("ups", "downs")
    )
    first, last = sick.losses[0] if sick.losses else math.nan, last_loss(sick)
    return [
        claim("verdict", "ill", sick.report["verdict"]),
        sign(sick, "gradients flow"),
        sign(sick, "the optimizer steps and holds the model's parameters"),
        sign(sick, "the learning rate is in range"),
        claim("norms that updates were meant for", f"{_NORMS}", f"{reached}"),
        claim("norms with every weight still exactly 1.0", f"{_NORMS}", f"{at_one}"),
        every("norm updates lost", "100 %", shares(norms), lambda lost: lost == 100, ".4g", " %"),
        claim("norm elements stored higher / lower", "0 / 0", f"{ups:,.0f} / {downs:,.0f}"),
        every("EDQ of the norms (1: as meant, 0: frozen)", "0.000", edqs(norms), lambda q: abs(q) < 5e-4),
        every(
            "headroom of the norms' updates, 95th percentile",
            "negative",
            [number(norm, "headroom_bits", "p95") for norm in norms],
            lambda bits: bits < 0,
            "+.1f",
            " bits",
        ),
        claim(
            "PD101 frozen-parameter",
            f"names {_NORMS} norms",
            f"names {len(blamed & names)} norms" + (f", {len(blamed - names)} others" * bool(blamed - names)),
        ),
        claim("its cause", f"train.py:{line_of(sample / 'train.py', _CAST)}", cause(found)),
        every("EDQ of the matrices", f">= {_LEARNS_EDQ}", edqs(matrices), lambda q: q >= _LEARNS_EDQ),
        claim("the loss falls", "yes", f"{first:.2f} to {last:.2f}", holds=last < first),
    ]


def _learning_norms(twin: Seen) -> list[Claim]:
    """Return what is known of the same program, data and seed with float32 weights."""
    norms = _norms(twin)
    moved = sum(number(norm, "weight", "moved_share") == 1 for norm in norms)
    edges = [edge for norm in norms for edge in magnitudes(norm)]
    return [
        claim("float32: verdict", "healthy", twin.report["verdict"]),
        claim("float32: norms with every weight moved", f"{_NORMS}", f"{moved}"),
        claim(
            "float32: norm weights at the end",
            "on both sides of 1",
            extent(edges, ".4f"),
            holds=bool(edges) and min(edges) < 1 < max(edges),
        ),
        every("float32: norm updates lost", "under 1 %", shares(norms), lambda lost: lost < 1, ".2g", " %"),
        every("float32: EDQ of the norms", "1.000", edqs(norms), lambda q: abs(q - 1) < 5e-3),
    ]


def _norms(seen: Seen) -> list[Mapping[str, Any]]:
    return [row for row in seen.report["parameters"] if "norm" in row["name"]]


def run(out: Path, options: Options) -> Outcome:
    """Scan the program in bfloat16 and in float32."""
    sample = sample_models() / SCENARIO.sample
    seen = {}
    for count, (name, arguments) in enumerate(_RUNS.items(), start=1):
        click.secho(f"[{count}/{len(_RUNS)}] {SCENARIO.name} in {name}", bold=True, err=True)
        argv = [*arguments, *(() if options.steps is None else ("--steps", str(options.steps)))]
        seen[name] = scan(sample / "train.py", argv, out / name)
        click.echo(err=True)
    written = ", ".join(f"{name}.html" for name in seen) + " and the same as .json"
    known = claims(sample, seen)
    text = table(("", SCENARIO.name, "expected", "seen"), known)
    return Outcome(claims=known, text=text, written=written)


SCENARIO = Scenario(
    name="bf16",
    summary="A mixture-of-experts language model cast to bfloat16: its RMSNorm weights stay at 1.0.",
    sample="bf16_moe_lm",
    run=run,
)
