"""Run the order case: train and compare, scan three recipes, then print tables and claims."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import click

from precdoctor.report.terminal import heading
from precdoctor.reproduce.order import claims, runs, sentences, tables
from precdoctor.reproduce.processes import cores, side_by_side
from precdoctor.reproduce.scenario import Claim, Options, Outcome, Scenario, sample_models, table


def run(out: Path, options: Options) -> Outcome:
    """Run everything side by side, and say what it shows."""
    sample = sample_models() / SCENARIO.sample
    logs = out / runs.LOGS
    logs.mkdir(exist_ok=True)
    commands = runs.commands(sample, out, options)
    click.secho(f"{SCENARIO.name}: {len(commands)} runs, {cores()} at a time", bold=True, err=True)
    side_by_side(commands, logs, lambda name: _told(logs / f"{name}.json"))
    side_by_side(runs.scans(sample, out), logs, lambda name: f"precdoctor scan: {_verdict(out, name)}")
    measured = runs.read(out, commands)
    known, said = claims.claims(measured), sentences.claims(measured)
    _write(out / "order.json", measured, known, said)
    scanned = ", ".join(f"{name}.html" for name in runs.SCANS)
    return Outcome(
        claims=[*known, *said],
        text=text(measured, known, said),
        written=f"order.json, {scanned}, {runs.MODELS}/ (what is stored) and {runs.LOGS}/",
    )


def text(m: runs.Measured, known: Sequence[Claim], said: Sequence[Claim]) -> str:
    """Return all that is printed: tables, then claims."""
    formats = [fmt for fmt in (runs.INT4, runs.INT8) if fmt in (m.orders[0].merging or ())]
    sections = {
        "What rounding costs a pretrained model": tables.sizes(m),
        **{f"Both orders, width {m.orders[0].dim}, {fmt}": tables.orders(m, fmt) for fmt in formats},
        "Size and order": table(("", "", "known", "here"), known, widths=(44, 22, 26)),
        "The document, sentence by sentence": table(
            ("", "it says", "known to be", "because here"), said, widths=(36, 11, 43)
        ),
    }
    return "\n\n".join(f"{heading(title)}\n\n{section}" for title, section in sections.items())


def _told(results: Path) -> str:
    """Return in a few words what a run came to."""
    trained = runs.read_trained(results)
    costs = ", ".join(f"{name} {claims.cost(trained, fmt).mean:+.4f}" for name, fmt in _TOLD.items())
    return f"loss {trained.loss('base', 'old'):.3f}, {costs}"


_TOLD = {"INT8": runs.INT8, "INT4": runs.INT4}


def _verdict(out: Path, name: str) -> str:
    verdict: str = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["verdict"]
    return verdict


def _write(file: Path, m: runs.Measured, known: Sequence[Claim], said: Sequence[Claim]) -> None:
    document = {
        "known": [dataclasses.asdict(claim) for claim in known],
        "document": [dataclasses.asdict(claim) for claim in said],
        "trained": [dataclasses.asdict(run) for seeds in m.trained.values() for run in seeds],
    }
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


SCENARIO = Scenario(
    name="order",
    summary="Quantized before, while or after fine-tuning: different artefacts, and what it does to small "
    "models.",
    sample="quantize_order",
    run=run,
    has_quick=True,
)
