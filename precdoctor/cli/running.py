"""The commands that run a program under observation: scan, and reproduce for the sample programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precdoctor.cli.deliver import SCRIPT_FAILED, deliver, write
from precdoctor.cli.options import CountOrAll, Output, judging_options, program_arguments

if TYPE_CHECKING:
    from precdoctor.evidence import Evidence, Run


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  precdoctor scan train.py --lr 3e-4            what follows the script is the script's
  precdoctor scan --steps 200 train.py          stop it after 200 optimizer steps
  precdoctor scan --html report.html train.py   a page to send to a colleague
  precdoctor scan -m my_package.train --lr 3e-4
  precdoctor scan trl sft --model_name_or_path ...

\b
Exit code: 0 no finding at or above --fail-on, 1 such a finding, 2 wrong usage,
3 the script itself failed. Ctrl-C ends the script; the report is written all the same.""",
)
@click.option(
    "--steps",
    type=CountOrAll(),
    metavar="N|all",
    default=50,
    show_default=True,
    help="Stop the script after N optimizer steps; 'all' lets it run to its end.",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Observe every N-th step. Default: as often as a quarter of the time allows.",
)
@click.option(
    "--watch", type=CountOrAll(), metavar="K|all", help="Elements to watch per tensor. Default: by size."
)
@click.option(
    "--probe",
    type=click.Choice(["brief", "shadow", "off"]),
    default="brief",
    show_default=True,
    help="Look at single operations in the first steps and now and then later; in all steps, each beside the "
    "same in float64, which is slow; or not at all.",
)
@click.option("--no-probe", "probe", flag_value="off", help="The same as --probe off.")
@click.option(
    "--look-at", type=click.IntRange(min=0), metavar="N", help="Look at the operations after N steps as well."
)
@click.option(
    "--retake/--no-retake",
    default=True,
    show_default=True,
    help="Run the script once more, where its loss turned inf or NaN unwatched, to look at that step.",
)
@judging_options
@click.option("--save", type=Output(), metavar="F", help="Write the evidence, to be judged again later.")
@program_arguments
@click.pass_context
def scan(
    context: click.Context,
    /,
    target: str,
    arguments: tuple[str, ...],
    module: bool,
    steps: int,
    every: int | None,
    watch: int | None,
    probe: str,
    look_at: int | None,
    retake: bool,
    save: Path | None,
    **judging: Any,
) -> None:
    """Run a training script under observation and say what ails it.

    TARGET is a script, a console command such as trl, or with -m a module. It runs as python would run
    it; its output and its results are the same as without precdoctor.
    """
    from precdoctor import script
    from precdoctor.program import TargetError

    try:
        with _progress(target, steps) as progress:
            evidence = script.scan(
                target,
                arguments,
                module=module,
                steps=steps or None,
                every=every,
                watch=watch,
                probe=probe != "off",
                shadow=probe == "shadow",
                look_at=look_at,
                progress=progress,
            )
    except TargetError as error:
        raise click.UsageError(str(error), context) from None
    click.echo(f"precdoctor: {_ending(evidence.run)}", err=True)
    if retake:
        evidence = _again(evidence, module)
    click.echo(err=True)
    if save is not None:
        from precdoctor import evidence as records

        write(save, "evidence", lambda path: records.save(evidence, path))
    code = deliver(evidence, err=True, **judging)
    if evidence.run.ended in ("failed", "exited"):
        code = SCRIPT_FAILED
    if evidence.run.ended == "stopped":
        script.leave(code)
    context.exit(code)


@click.command(
    epilog="""\b
Examples:
  precdoctor reproduce bf16
  precdoctor reproduce fp4 --quick"""
)
@click.argument("name", type=click.Choice(["bf16", "fp4", "compare", "order"]))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="D", help="Where to write.")
@click.option("--quick", is_flag=True, help="Fewer and shorter runs, where the case has such a form.")
@click.pass_context
def reproduce(context: click.Context, /, name: str, out: Path | None, quick: bool) -> None:
    """Run a sample training program with a known illness, and compare what is found with what is known."""
    from precdoctor import reproduce as scenarios

    context.exit(scenarios.reproduce(name, out=out, quick=quick))


def _again(evidence: Evidence, module: bool) -> Evidence:
    """Return the evidence with what a second run has shown, where one is needed."""
    from precdoctor import retake

    step = retake.wanted(evidence)
    if step is None or evidence.run.ended == "interrupted":
        return evidence
    click.echo(
        f"precdoctor: the loss is {evidence.losses[-1][1]} after {step:,} steps, and what made it was not "
        "seen: running the script again to look at that step (--no-retake leaves that out)",
        err=True,
    )
    try:
        return retake.retake(evidence, step, module=module)
    except KeyboardInterrupt:
        return evidence


@contextmanager
def _progress(target: str, steps: int) -> Iterator[Callable[[int], None]]:
    """Yield what to call with the number of steps: a bar on a terminal, elsewhere one line at the start."""
    if not sys.stderr.isatty():
        until = f"for {steps} optimizer steps" if steps else "to its end"
        yield lambda n: click.echo(f"precdoctor: watching {target} {until}", err=True) if n == 0 else None
        return
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        monitor_interval = 0  # no thread of ours in the user's process

    with Bar(total=steps or None, desc="precdoctor", unit="step", leave=False, dynamic_ncols=True) as bar:

        def update(steps: int) -> None:
            bar.update(steps - bar.n)

        yield update


def _ending(run: Run) -> str:
    """Return how the script ended, in a line."""
    how = {
        "stopped": f"was stopped after --steps {run.steps}; --steps all lets it run to its end",
        "interrupted": "was interrupted",
        "exited": f"exited with code {run.exit_code}",
        "failed": "failed",
    }.get(run.ended, "finished")
    if run.ended == "stopped":
        return f"{run.target} {how}"
    seen = f"after {run.steps} optimizer steps" if run.steps else "and no optimizer step was seen"
    return f"{run.target} {how} {seen}"
