"""The command line: parse and call, no logic. Imports no torch; `scan` leaves that to the script."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from precdoctor.evidence import Evidence, Run
    from precdoctor.report import Report
    from precdoctor.rules import Rule

_Function = TypeVar("_Function", bound=Callable[..., Any])

USAGE, SCRIPT_FAILED = 2, 3


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


class _CountOrAll(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.4
    """A whole number from 1, or "all", which is 0."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "all" or isinstance(value, int):
            return 0 if value == "all" else value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a whole number from 1 nor 'all'", param, ctx)
        return int(value)


class _Output(click.Path):
    """A file that can be written, checked before anything runs."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(
            os.fsdecode(super().convert(value, param, ctx))
        ).absolute()  # the script may change directory
        if not path.parent.is_dir():
            self.fail(f"{path.parent} is not a directory", param, ctx)
        if not os.access(path.parent, os.W_OK):
            self.fail(f"{path.parent} is not writable", param, ctx)
        return path


def _rules(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    patterns = tuple(part.strip() for part in value.split(",") if part.strip())
    if patterns:
        from precdoctor.rules import CATALOGUE

        for pattern in patterns:
            if not any(pattern == rule.name or rule.id.startswith(pattern.upper()) for rule in CATALOGUE):
                raise click.BadParameter(f"no rule {pattern!r}; precdoctor rules lists them", ctx, param)
    return patterns


def _judging(command: _Function) -> _Function:
    """Add the options of the commands that judge."""
    for option in reversed(
        (
            click.option(
                "--select", metavar="IDS", default="", callback=_rules, help="Only these rules: PD1,PD203."
            ),
            click.option("--ignore", metavar="IDS", default="", callback=_rules, help="Not these rules."),
            click.option(
                "--fail-on",
                type=click.Choice(["error", "warning", "never"]),
                default="error",
                show_default=True,
                help="The mildest finding that makes the exit code 1.",
            ),
        )
    ):
        command = option(command)
    return _writing(command)


def _writing(command: _Function) -> _Function:
    """Add the options that write a report to files."""
    for name, what in (
        ("--sarif", "Write the findings as SARIF, for code hosts and editors."),
        ("--json", "Write the report as JSON."),
        ("--html", "Write the report as a page."),
    ):
        command = click.option(name, type=_Output(), metavar="F", help=what)(command)
    return command


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


@main.command(
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
    type=_CountOrAll(),
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
    "--watch", type=_CountOrAll(), metavar="K|all", help="Elements to watch per tensor. Default: by size."
)
@click.option(
    "--probe/--no-probe",
    default=True,
    show_default=True,
    help="Note in the first steps which modules run.",
)
@_judging
@click.option("--save", type=_Output(), metavar="F", help="Write the evidence, to be judged again later.")
@click.option("-m", "module", is_flag=True, help="TARGET is a module, as in python -m.")
@click.argument("target")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
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
    probe: bool,
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
                probe=probe,
                progress=progress,
            )
    except TargetError as error:
        raise click.UsageError(str(error), context) from None
    click.echo(f"precdoctor: {_ending(evidence.run)}\n", err=True)
    if save is not None:
        from precdoctor import evidence as records

        _write(save, "evidence", lambda path: records.save(evidence, path))
    code = _deliver(evidence, err=True, **judging)
    if evidence.run.ended in ("failed", "exited"):
        code = SCRIPT_FAILED
    if evidence.run.ended == "stopped":
        script.leave(code)
    context.exit(code)


@main.command(
    epilog="""\b
Examples:
  precdoctor scan --save evidence.json train.py
  precdoctor diagnose evidence.json --ignore PD105 --html report.html"""
)
@click.argument("evidence", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_judging
@click.pass_context
def diagnose(context: click.Context, /, evidence: Path, **judging: Any) -> None:
    """Judge saved EVIDENCE again, without running anything."""
    context.exit(_deliver(_load(evidence), err=False, **judging))


@main.command(
    epilog="""\b
Example:
  precdoctor report evidence.json --html report.html"""
)
@click.argument("evidence", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_writing
@click.pass_context
def report(context: click.Context, /, evidence: Path, **files: Path | None) -> None:
    """Write the report of saved EVIDENCE to files."""
    from precdoctor.report import Report

    if not any(files.values()):
        raise click.UsageError("say where: --html report.html, --json report.json", context)
    _write_report(Report.of(_load(evidence)), **files)


@main.command()
def rules() -> None:
    """List the rules: the illnesses that precdoctor knows."""
    from precdoctor.rules import CATALOGUE

    width = max(len(rule.name) for rule in CATALOGUE)
    for rule in CATALOGUE:
        click.echo(f"{rule.id}  {rule.name:<{width}}  {_page(rule).partition(chr(10))[0]}")


@main.command(
    epilog="""\b
Examples:
  precdoctor explain PD101
  precdoctor explain frozen-parameter"""
)
@click.argument("rule")
def explain(rule: str) -> None:
    """Print the page of a RULE, by its id or its name."""
    from precdoctor.rules import CATALOGUE

    for known in CATALOGUE:
        if rule.upper() == known.id or rule.lower() == known.name:
            click.echo(f"# {known.id} {known.name}\n\n{_page(known)}")
            return
    raise click.UsageError(f"no rule {rule!r}; precdoctor rules lists them")


@main.command(
    epilog="""\b
Examples:
  precdoctor formats              range and precision of all formats
  precdoctor formats bfloat16     one in detail
  precdoctor formats --at 1.0     what moves a weight of 1.0, and what does not"""
)
@click.argument("name", required=False)
@click.option("--at", type=float, metavar="X", help="Show the neighbours of X and the half-ulps around it.")
def formats(name: str | None, at: float | None) -> None:
    """Show number formats: their range, their precision, the spacing of their values."""
    from precdoctor.formats import FormatError, table

    if name is not None and at is not None:
        raise click.UsageError("give a NAME or --at, not both")
    try:
        click.echo(
            table.describe(name) if name else table.format_table() if at is None else table.spacing_table(at)
        )
    except FormatError as error:
        raise click.UsageError(str(error.args[0])) from None


@main.command(
    epilog="""\b
Example:
  precdoctor reproduce bf16"""
)
@click.argument("name", type=click.Choice(["bf16"]))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="D", help="Where to write.")
@click.pass_context
def reproduce(context: click.Context, /, name: str, out: Path | None) -> None:
    """Run a sample training program with a known illness, and compare what is found with what is known."""
    from precdoctor import reproduce as scenarios

    context.exit(scenarios.reproduce(name, out=out))


def _deliver(
    evidence: Evidence,
    *,
    err: bool,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    fail_on: str,
    **files: Path | None,
) -> int:
    """Show the report, write it where asked, and return the exit code."""
    from precdoctor.report import Report, text
    from precdoctor.rules import SEVERITIES

    report = Report.of(evidence, select, ignore)
    click.echo(text.render(report), err=err)
    _write_report(report, **files)
    if fail_on == "never":
        return 0
    grave = SEVERITIES[SEVERITIES.index("error" if fail_on == "error" else "warning") :]
    return int(any(finding.severity in grave for finding in report.findings))


def _write_report(report: Report, *, html: Path | None, json: Path | None, sarif: Path | None) -> None:
    if json is not None:
        _write(json, "JSON report", report.to_json)
    if sarif is not None:
        _write(sarif, "SARIF log", report.to_sarif)
    if html is not None:
        _write(html, "report page", report.to_html)


def _write(path: Path, what: str, write: Callable[[Path], object]) -> None:
    try:
        write(path)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None
    click.echo(f"precdoctor: {what} written to {os.path.relpath(path)}", err=True)


def _load(path: Path) -> Evidence:
    from precdoctor.evidence import EvidenceError, load

    try:
        return load(path)
    except (EvidenceError, OSError) as error:
        raise click.ClickException(f"{path}: {error}") from None


def _page(rule: type[Rule]) -> str:
    return inspect.cleandoc(rule.__doc__ or "")


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
