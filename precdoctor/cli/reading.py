"""The commands that run nothing: they read saved evidence, the rules and the formats."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precdoctor.cli.deliver import deliver, load, write_report
from precdoctor.cli.options import judging_options, report_options

if TYPE_CHECKING:
    from precdoctor.remedies import Remedy
    from precdoctor.rules import Rule


@click.command(
    epilog="""\b
Examples:
  precdoctor scan --save evidence.json train.py
  precdoctor diagnose evidence.json --ignore PD105 --html report.html"""
)
@click.argument("evidence", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@judging_options
@click.pass_context
def diagnose(context: click.Context, /, evidence: Path, **judging: Any) -> None:
    """Judge saved EVIDENCE again, without running anything."""
    context.exit(deliver(load(evidence), err=False, **judging))


@click.command(
    epilog="""\b
Example:
  precdoctor report evidence.json --html report.html"""
)
@click.argument("evidence", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@report_options
@click.pass_context
def report(context: click.Context, /, evidence: Path, **files: Path | None) -> None:
    """Write the report of saved EVIDENCE to files."""
    from precdoctor.report import Report

    if not any(files.values()):
        raise click.UsageError("say where: --html report.html, --json report.json", context)
    write_report(Report.of(load(evidence)), **files)


@click.command()
def rules() -> None:
    """List the rules: the illnesses that precdoctor knows."""
    from precdoctor.rules import CATALOGUE

    width = max(len(rule.name) for rule in CATALOGUE)
    for rule in CATALOGUE:
        click.echo(f"{rule.id}  {rule.name:<{width}}  {_page(rule).partition(chr(10))[0]}")


@click.command(
    epilog="""\b
Examples:
  precdoctor explain PD101
  precdoctor explain frozen-parameter
  precdoctor explain stochastic-rounding"""
)
@click.argument("name", metavar="RULE|REMEDY")
def explain(name: str) -> None:
    """Print the page of a rule, by its id or its name, or of a remedy."""
    from precdoctor.remedies import REMEDIES
    from precdoctor.rules import CATALOGUE

    for rule in CATALOGUE:
        if name.upper() == rule.id or name.lower() == rule.name:
            click.echo(f"# {rule.id} {rule.name}\n\n{_page(rule)}")
            return
    for remedy in REMEDIES:
        if name.lower() == remedy.id:
            click.echo(f"# {remedy.id}\n\n{_page(remedy)}")
            return
    known = ", ".join(remedy.id for remedy in REMEDIES)
    raise click.UsageError(f"no rule or remedy {name!r}; precdoctor rules lists the rules, remedies: {known}")


@click.command(
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


def _page(of: type[Rule] | type[Remedy]) -> str:
    return inspect.cleandoc(of.__doc__ or "")
