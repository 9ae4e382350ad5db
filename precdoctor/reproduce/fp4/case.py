"""Run the FP4 case: train, scan and treat, then print tables and claims."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from precdoctor.report.terminal import heading, symbol, wrap
from precdoctor.report.words import percent
from precdoctor.reproduce.fp4 import diagnosis, runs, sentences, tables
from precdoctor.reproduce.processes import cores, side_by_side
from precdoctor.reproduce.scenario import Claim, Options, Outcome, Scenario, Seen, sample_models, table


def run(out: Path, options: Options) -> Outcome:
    """Run everything side by side, and say what it shows."""
    sample = sample_models() / SCENARIO.sample
    logs = out / runs.LOGS
    logs.mkdir(exist_ok=True)
    commands = runs.commands(sample, out, options)
    click.secho(f"{SCENARIO.name}: {len(commands)} runs, {cores()} at a time", bold=True, err=True)
    side_by_side(commands, logs, lambda name: _told(logs / f"{name}.json"))
    measured = runs.read(sample, out, commands)
    nine, said = diagnosis.claims(measured), sentences.claims(measured)
    _write(out / "fp4.json", measured, nine, said)
    return Outcome(
        claims=[*nine, *said],
        text=text(measured, nine, said),
        written="fp4.json, scan-reported.html, scan-twin.html, treat.html, and what each run printed",
    )


def text(m: runs.Measured, nine: Sequence[Claim], said: Sequence[Claim]) -> str:
    """Return all that is printed: tables, then what the doctor says, then claims."""
    sections = {
        "The report beside this run": tables.beside(m),
        "Every recipe": tables.recipes(m),
        "Memory": tables.memory(m),
        "What formats do to the report's weights, N(0, 0.02) at seed 42": tables.formats(m),
        "precdoctor scan, the model as reported": _scanned(m.reported),
        "precdoctor scan, with a straight-through estimator": _scanned(m.twin),
        "precdoctor treat": _treated(m.treated["trials"]),
        "Nine things that a good diagnosis says": table(("", "", "known", "here"), nine, widths=(38, 26, 27)),
        "The report, sentence by sentence": table(
            ("", "it says", "is", "because here"), said, widths=(38, 9, 44)
        ),
    }
    return "\n\n".join(f"{heading(title)}\n\n{section}" for title, section in sections.items())


def _scanned(seen: Seen) -> str:
    """Return the verdict and the findings of a scan."""
    report = seen.report
    verdict = report["verdict"] if report["findings"] else f"{report['verdict']}: {report['summary']}"
    lines = [wrap(verdict, tables.WIDTH, "  ", f"{symbol(report['verdict'])} ")]
    for finding in report["findings"]:
        first = f"{symbol(finding['severity'])} {finding['rule']} {finding['name']}: "
        lines.append(wrap(finding["message"], tables.WIDTH, "  ", first))
        lines += [
            wrap(
                f"{place['file']}:{place['line']}  {place['code']}",
                tables.WIDTH,
                "    ",
                f"  {place['role']}: ",
            )
            for place in finding["locations"]
            if place["role"] == "cause"
        ]
    return "\n".join(lines)


def _treated(trials: Sequence[Mapping[str, Any]]) -> str:
    """Return what came of each cure that treat has tried."""
    tried = [trial for trial in trials if trial["outcome"]]
    if not tried:
        return "No cure for what was found can be applied from outside."
    lines = []
    for trial in trials:
        loss = "" if trial["loss_last"] is None else f", loss {trial['loss_last']:.3f}"
        outcome = f": {trial['outcome']}" if trial["outcome"] else ""
        lines.append(
            wrap(f"{trial['label']}{outcome}{loss}. {trial['why'] or ''}", tables.WIDTH, "    ", "  ")
        )
    return "\n".join(lines)


def _told(results: Path) -> str:
    """Return in a few words what a run came to."""
    if not results.is_file():
        return "done"
    trained = runs.training(json.loads(results.read_text(encoding="utf-8")))
    return f"loss {trained.loss:.3f}, {percent(trained.accuracy)} right, {trained.seconds:.0f} s"


def _write(file: Path, m: runs.Measured, nine: Sequence[Claim], said: Sequence[Claim]) -> None:
    document = {
        "diagnosis": [dataclasses.asdict(claim) for claim in nine],
        "report": [dataclasses.asdict(claim) for claim in said],
        "trained": {name: dataclasses.asdict(run) for name, run in m.trained.items()},
        "sizes": m.sizes,
        "errors": m.errors,
    }
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


SCENARIO = Scenario(
    name="fp4",
    summary="A language model with 4-bit weights that never learns: its weights get no gradient, and FP4 "
    "is not to blame.",
    sample="fp4_lm",
    run=run,
    has_quick=True,
)
