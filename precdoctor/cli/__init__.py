"""The command line: parse and call, no logic. Imports no torch; `scan` leaves that to the script."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from precdoctor.cli.checkpoints import diff
from precdoctor.cli.deliver import USAGE
from precdoctor.cli.evaluating import compare, memory
from precdoctor.cli.fixing import fix
from precdoctor.cli.reading import diagnose, explain, formats, report, rules
from precdoctor.cli.running import reproduce, scan
from precdoctor.cli.trying import treat

__all__ = ["main"]

#: in the order in which --help lists them
COMMANDS: tuple[click.Command, ...] = (
    scan,
    treat,
    fix,
    diff,
    compare,
    memory,
    diagnose,
    report,
    rules,
    explain,
    formats,
    reproduce,
)


class _Commands(click.Group):
    """Says what is wrong with the input in one line."""

    def main(  # type: ignore[override]  # click overloads it by the value of standalone_mode
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run a command and exit."""
        try:
            code = super().main(args, prog_name, **{**extra, "standalone_mode": False})
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            path = context.command_path if context is not None else "precdoctor"
            hint = f" (see {path} --help)" if isinstance(error, click.UsageError) else ""
            click.echo(f"{path}: {error.format_message().rstrip('.')}{hint}", err=True)
            sys.exit(USAGE)
        except click.Abort:
            click.echo("precdoctor: interrupted", err=True)
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Start here:
  precdoctor scan train.py --lr 3e-4
  precdoctor scan --html report.html train.py
  precdoctor explain PD101""",
)
@click.version_option(package_name="precdoctor")
@click.pass_context
def main(context: click.Context) -> None:
    """Find out why a PyTorch training run does not learn when the reason is numerical precision.

    precdoctor runs your training script unchanged, watches what the optimizer means to do and what the
    number format lets through, and names the parameters, the arithmetic and the line of your code.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in COMMANDS:
    main.add_command(command)
