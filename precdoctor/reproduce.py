"""Reproduce a known case: run its sample program under observation, then compare what was seen with what
was expected.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import click
from tabulate import tabulate

from precdoctor import evidence

_PACKAGE = Path(__file__).resolve().parent

#: EDQ (1 = descent as the optimizer meant it) above which a parameter keeps learning; rule PD102 warns below
_LEARNS_EDQ = 0.9
#: steps at the end over which the loss is averaged
_LAST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one run showed."""

    #: the report, schema precdoctor.report/1
    report: Mapping[str, Any]
    #: loss at each step, in order
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Something that is known of the case, and what the run says about it."""

    what: str
    expected: str
    seen: str
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A sample program, the runs of it and what is known about them."""

    name: str
    summary: str
    #: folder below sample_models; its train.py is run and takes --steps
    sample: str
    #: arguments of train.py by the name of the run; the names are those of the files that are written
    runs: Mapping[str, tuple[str, ...]]
    #: what must hold, from the folder of the program and what its runs showed
    claims: Callable[[Path, Mapping[str, Seen]], list[Claim]]


def reproduce(name: str, *, out: Path | None = None, steps: int | None = None) -> int:
    """Run a scenario, write its reports to ``out`` and print expected beside seen.

    Returns 0 when every claim holds, else 1. ``steps`` is the number of optimizer steps of each run, None
    the program's own. Raises `click.UsageError` for an unknown name and `click.ClickException` where a
    run came to no report.
    """
    scenario = next((known for known in SCENARIOS if known.name == name), None)
    if scenario is None:
        known = ", ".join(scenario.name for scenario in SCENARIOS)
        raise click.UsageError(f"no scenario {name!r}; there is: {known}")
    sample = sample_models() / scenario.sample
    out = Path(f"precdoctor-reproduce-{name}") if out is None else out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot write to {out}: {error.strerror}") from None

    start = time.perf_counter()
    seen = {}
    for number, (run, arguments) in enumerate(scenario.runs.items(), start=1):
        click.secho(f"[{number}/{len(scenario.runs)}] {scenario.name} in {run}", bold=True, err=True)
        argv = [*arguments, *(() if steps is None else ("--steps", str(steps)))]
        seen[run] = _scan(sample / "train.py", argv, out / run)
        click.echo(err=True)
    claims = scenario.claims(sample, seen)
    click.echo(_table(scenario, claims))
    held = sum(claim.holds for claim in claims)
    click.echo(f"\n{held} of {len(claims)} as expected, after {time.perf_counter() - start:.0f} s.")
    click.echo(f"Written to {out}: " + ", ".join(f"{run}.html" for run in seen) + " and the same as .json.")
    click.echo(f"The program: {sample / 'train.py'}")
    return int(held < len(claims))


def sample_models() -> Path:
    """Return the folder of the sample programs: inside an installed package, else beside it in a checkout."""
    for folder in (_PACKAGE / "sample_models", _PACKAGE.parent / "sample_models"):
        if folder.is_dir():
            return folder
    raise click.ClickException(f"the sample programs are missing: no folder sample_models in {_PACKAGE}")


def _scan(script: Path, argv: list[str], stem: Path) -> Seen:
    """Scan the script in a process of its own, to its end, and return what was seen."""
    files = {
        option: stem.with_name(stem.name + suffix)
        for option, suffix in (("--json", ".json"), ("--html", ".html"), ("--save", ".evidence.json"))
    }
    command = [sys.executable, "-m", "precdoctor", "scan", "--steps", "all", "--every", "1"]
    command += ["--fail-on", "never"]
    for option, file in files.items():
        file.unlink(missing_ok=True)  # nothing of an earlier run passes for this one's
        command += [option, str(file)]
    code = subprocess.run([*command, str(script), *argv], check=False).returncode
    if code or not all(file.is_file() for file in files.values()):
        raise click.ClickException(f"{script} under observation ended with exit code {code}")
    document: dict[str, Any] = json.loads(files["--json"].read_text(encoding="utf-8"))
    losses = evidence.load(files["--save"]).losses
    return Seen(report=document, losses=tuple(loss for _, loss in losses))


def _table(scenario: Scenario, claims: Iterable[Claim]) -> str:
    rows = [
        (
            click.style("✓", fg="green") if claim.holds else click.style("✗", fg="red", bold=True),
            claim.what,
            claim.expected,
            claim.seen,
        )
        for claim in claims
    ]
    table = tabulate(rows, headers=("", scenario.name, "expected", "seen"), maxcolwidths=[None, 38, 24, 38])
    return f"{scenario.summary}\n\n{table}"


# ---------------------------------------------------------------------- bf16

#: the line of train.py that is to blame
_CAST = "model.to(dtype=torch.bfloat16)"
#: RMSNorm weights of the model: four per layer (attention, its queries and keys, experts) and the last
_NORMS = 13


def _bf16_claims(sample: Path, seen: Mapping[str, Seen]) -> list[Claim]:
    sick, twin = seen["bfloat16"], seen["float32"]
    ours, theirs = _last_loss(sick), _last_loss(twin)
    return [
        *_frozen_norms(sample, sick),
        *_learning_norms(twin),
        _claim(
            f"mean loss of the last {_LAST} steps, bfloat16 against float32",
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
    finding = next((found for found in sick.report["findings"] if found["rule"] == "PD101"), None)
    named = {subject["name"] for subject in finding["subjects"]} if finding else set()
    reached = sum(
        _number(norm, "gradient", "present") > 0 and _number(norm, "updates", "intended") > 0
        for norm in norms
    )
    at_one = sum(
        _magnitudes(norm) == (1, 1) and _number(norm, "weight", "moved_share") == 0 for norm in norms
    )
    ups, downs = (
        sum(_number(norm, "updates", f"{way}_applied") for norm in norms) for way in ("ups", "downs")
    )
    first, last = sick.losses[0] if sick.losses else math.nan, _last_loss(sick)
    return [
        _claim("verdict", "ill", sick.report["verdict"]),
        _sign(sick, "gradients flow"),
        _sign(sick, "the optimizer steps and holds the model's parameters"),
        _sign(sick, "the learning rate is in range"),
        _claim("norms that updates were meant for", f"{_NORMS}", f"{reached}"),
        _claim("norms with every weight still exactly 1.0", f"{_NORMS}", f"{at_one}"),
        _every("norm updates lost", "100 %", _shares(norms), lambda lost: lost == 100, ".4g", " %"),
        _claim("norm elements stored higher / lower", "0 / 0", f"{ups:,.0f} / {downs:,.0f}"),
        _every("EDQ of the norms (1: as meant, 0: frozen)", "0.000", _edqs(norms), lambda q: abs(q) < 5e-4),
        _every(
            "headroom of the norms' updates, 95th percentile",
            "negative",
            [_number(norm, "headroom_bits", "p95") for norm in norms],
            lambda bits: bits < 0,
            "+.1f",
            " bits",
        ),
        _claim(
            "PD101 frozen-parameter",
            f"names {_NORMS} norms",
            f"names {len(named & names)} norms" + (f", {len(named - names)} others" * bool(named - names)),
        ),
        _claim("its cause", f"train.py:{_line_of(sample / 'train.py', _CAST)}", _cause(finding)),
        _every("EDQ of the matrices", f">= {_LEARNS_EDQ}", _edqs(matrices), lambda q: q >= _LEARNS_EDQ),
        _claim("the loss falls", "yes", f"{first:.2f} to {last:.2f}", holds=last < first),
    ]


def _learning_norms(twin: Seen) -> list[Claim]:
    """Return what is known of the same program, data and seed with float32 weights."""
    norms = _norms(twin)
    moved = sum(_number(norm, "weight", "moved_share") == 1 for norm in norms)
    edges = [edge for norm in norms for edge in _magnitudes(norm)]
    return [
        _claim("float32: verdict", "healthy", twin.report["verdict"]),
        _claim("float32: norms with every weight moved", f"{_NORMS}", f"{moved}"),
        _claim(
            "float32: norm weights at the end",
            "on both sides of 1",
            _range(edges, ".4f"),
            holds=bool(edges) and min(edges) < 1 < max(edges),
        ),
        _every("float32: norm updates lost", "under 1 %", _shares(norms), lambda lost: lost < 1, ".2g", " %"),
        _every("float32: EDQ of the norms", "1.000", _edqs(norms), lambda q: abs(q - 1) < 5e-3),
    ]


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        name="bf16",
        summary="A mixture-of-experts language model cast to bfloat16: its RMSNorm weights stay at 1.0.",
        sample="bf16_moe_lm",
        runs={
            "bfloat16": ("--device", "cpu"),  # the same numbers on every machine
            "float32": ("--device", "cpu", "--dtype", "float32"),
        },
        claims=_bf16_claims,
    ),
)


# ---------------------------------------------------------------------- reading a report


def _norms(seen: Seen) -> list[Mapping[str, Any]]:
    return [row for row in seen.report["parameters"] if "norm" in row["name"]]


def _number(row: Mapping[str, Any], *keys: str) -> float:
    """Return what stands under the keys; NaN, which no claim accepts, where nothing was seen."""
    value: Any = row
    for key in keys:
        value = value.get(key) if value is not None else None
    return math.nan if value is None else float(value)


def _edqs(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    return [_number(row, "edq") for row in rows]


def _shares(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the shares of lost updates in percent."""
    return [100 * _number(row, "lost_share") for row in rows]


def _magnitudes(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the smallest and the largest magnitude of a weight at the end."""
    return _number(row, "weight", "abs_min"), _number(row, "weight", "abs_max")


def _last_loss(seen: Seen) -> float:
    return fmean(seen.losses[-_LAST:]) if seen.losses else math.nan


def _cause(finding: Mapping[str, Any] | None) -> str:
    """Return the line that a finding gives as its cause, the file without its folder."""
    causes = [place for place in finding["locations"] if place["role"] == "cause"] if finding else []
    return ", ".join(
        f"{Path(place['file']).name}:{place['line']}{'' if place['certain'] else ' (likely)'}"
        for place in causes
    )


def _line_of(file: Path, code: str) -> int:
    """Return the number of the line that contains the code."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, start=1) if code in line)


def _claim(what: str, expected: str, seen: str, *, holds: bool | None = None) -> Claim:
    """Return a claim that holds as told, or when the same was seen as expected."""
    return Claim(what=what, expected=expected, seen=seen, holds=seen == expected if holds is None else holds)


def _every(
    what: str,
    expected: str,
    values: list[float],
    accept: Callable[[float], bool],
    form: str = ".3f",
    unit: str = "",
) -> Claim:
    """Return a claim that every value is acceptable, and that there are any."""
    return _claim(
        what, expected, _range(values, form) + unit, holds=bool(values) and all(map(accept, values))
    )


def _sign(seen: Seen, name: str) -> Claim:
    status = next((sign["status"] for sign in seen.report["vital_signs"] if sign["name"] == name), "missing")
    return _claim(f"vital sign: {name}", "ok", status)


def _range(values: list[float], form: str) -> str:
    """Return the smallest and the largest value, or the one value that they share."""
    if not values:
        return "nothing"
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} .. {high}"
