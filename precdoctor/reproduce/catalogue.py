"""The scenarios that there are, and running one of them."""

from __future__ import annotations

import time
from pathlib import Path

import click

from precdoctor.report.terminal import showable
from precdoctor.reproduce import bf16, comparing, fp4, order
from precdoctor.reproduce.scenario import Options, Scenario, sample_models

SCENARIOS: tuple[Scenario, ...] = (bf16.SCENARIO, fp4.SCENARIO, comparing.SCENARIO, order.SCENARIO)


def reproduce(name: str, *, out: Path | None = None, steps: int | None = None, quick: bool = False) -> int:
    """Run a scenario, write its files to ``out`` and print what is known beside what was seen.

    Returns 0 when every claim holds, else 1. ``steps`` is the number of optimizer steps of each run, None
    the program's own. Raises `click.UsageError` for an unknown name or a scenario that has no quick form,
    and `click.ClickException` where a run came to nothing.
    """
    scenario = next((known for known in SCENARIOS if known.name == name), None)
    if scenario is None:
        known = ", ".join(scenario.name for scenario in SCENARIOS)
        raise click.UsageError(f"no scenario {name!r}; there is: {known}")
    if quick and not scenario.has_quick:
        raise click.UsageError(f"{name} has no quick form; it is quick as it is")
    out = Path(f"precdoctor-reproduce-{name}") if out is None else out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot write to {out}: {error.strerror}") from None

    start = time.perf_counter()
    outcome = scenario.run(out, Options(steps=steps, quick=quick))
    held = sum(claim.holds for claim in outcome.claims)
    text = (
        f"{scenario.summary}\n\n{outcome.text}"
        f"\n\n{held} of {len(outcome.claims)} as expected, after {time.perf_counter() - start:.0f} s."
        f"\nWritten to {out}: {outcome.written}."
        f"\nThe program: {sample_models() / scenario.sample / scenario.program}"
    )
    click.echo(showable(text))
    return int(held < len(outcome.claims))
