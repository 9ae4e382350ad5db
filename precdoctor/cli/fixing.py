"""The command that writes a cure into the user's source: fix."""

from __future__ import annotations

import click

from precdoctor.cli.options import CountOrAll, program_arguments


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  precdoctor fix train.py --lr 3e-4            show an edit that was proved
  precdoctor fix train.py > fix.patch          to apply it later: git apply fix.patch
  precdoctor fix --write train.py              change the files; backups stay beside them
  precdoctor fix --remedy stochastic-rounding train.py

\b
Exit code: 0 an edit holds, or there is nothing to fix; 1 no edit holds; 2 wrong usage, or files
that must not be changed; 3 the script itself failed.""",
)
@click.option(
    "--steps",
    type=CountOrAll(),
    metavar="N|all",
    default=50,
    show_default=True,
    help="Stop each run after N optimizer steps; 'all' lets it come to its end.",
)
@click.option("--remedy", metavar="ID", help="Try this remedy only.")
@click.option("--write", "apply", is_flag=True, help="Change the files, if the proof holds.")
@click.option("--force", is_flag=True, help="With --write: also where git has uncommitted changes.")
@program_arguments
@click.pass_context
def fix(
    context: click.Context,
    /,
    target: str,
    arguments: tuple[str, ...],
    module: bool,
    steps: int,
    remedy: str | None,
    apply: bool,
    force: bool,
) -> None:
    """Write the cure into the source, prove it on a copy, and show it as a patch.

    The program runs once as it is and then, edited, in a temporary tree: once per cure until one holds.
    Its output is hidden; the patch goes to stdout.
    """
    from precdoctor import fix as fixing
    from precdoctor.program import TargetError

    program = fixing.Program(target=target, arguments=arguments, module=module, steps=steps or None)
    try:
        code = fixing.fix(
            program,
            lambda text: click.echo(f"precdoctor: {text}", err=True),
            remedy=remedy,
            apply=apply,
            force=force,
        )
    except (TargetError, fixing.FixError) as error:
        raise click.UsageError(str(error), context) from None
    context.exit(code)
