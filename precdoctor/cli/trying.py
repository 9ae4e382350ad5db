"""The commands that try cures: treat runs the program under each of them."""

from __future__ import annotations

from typing import Any

import click

from precdoctor.cli.deliver import INTERRUPTED, SCRIPT_FAILED, deliver
from precdoctor.cli.options import judging_options, program_arguments, remedies


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  precdoctor treat train.py --lr 3e-4             what follows the script is the script's
  precdoctor treat --only autocast,kahan train.py
  precdoctor treat --steps 200 --html report.html train.py
  precdoctor treat --jobs 2 -m my_package.train   two at a time; their times are not compared

\b
Exit code: as scan, by the findings in the untreated run. Ctrl-C ends all runs and shows what is known.""",
)
@click.option(
    "--steps",
    type=click.IntRange(min=10),
    metavar="N",
    default=50,
    show_default=True,
    help="Optimizer steps of every run.",
)
@click.option(
    "--only", metavar="IDS", default="", callback=remedies, help="Only these remedies: autocast,kahan."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", default=1, show_default=True, help="Runs at a time."
)
@click.option("--fresh", is_flag=True, help="Run again what is kept from an earlier time.")
@judging_options
@program_arguments
@click.pass_context
def treat(
    context: click.Context,
    /,
    target: str,
    arguments: tuple[str, ...],
    module: bool,
    steps: int,
    only: tuple[str, ...],
    jobs: int,
    fresh: bool,
    **judging: Any,
) -> None:
    """Run a training script again under each cure that its findings ask for, and say what came of it.

    The script is run as it is, in float32, and once per cure, each time in a fresh process from the
    current directory with the same seeds: whatever it writes, it writes each time. Nothing is edited;
    cures are applied from outside. Runs that were made are kept, and made again when the script changes.
    """
    from precdoctor.program import TargetError
    from precdoctor.treat import Program
    from precdoctor.treat import treat as run_trials

    try:
        came = run_trials(
            Program(target=target, argv=arguments, module=module, steps=steps),
            lambda line: click.echo(f"precdoctor: {line}", err=True),
            only=only,
            jobs=jobs,
            fresh=fresh,
            select=judging["select"],
            ignore=judging["ignore"],
        )
    except TargetError as error:
        raise click.UsageError(str(error), context) from None
    click.echo(came.failure, err=True)
    code = deliver(came.evidence, err=False, trials=came.trials, **judging)
    context.exit(INTERRUPTED if came.interrupted else SCRIPT_FAILED if came.failure else code)
