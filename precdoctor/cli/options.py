"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])


class CountOrAll(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.4
    """A whole number from 1, or "all", which is 0."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        if value == "all" or isinstance(value, int):
            return 0 if value == "all" else value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a whole number from 1 nor 'all'", param, ctx)
        return int(value)


class Output(click.Path):
    """A file that can be written, checked before anything runs."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the absolute path."""
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


def remedies(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """Return the ids of remedies in a list of them."""
    ids = tuple(part.strip() for part in value.split(",") if part.strip())
    if ids:
        from precdoctor.remedies import REMEDIES

        known = [remedy.id for remedy in REMEDIES]
        for name in ids:
            if name not in known:
                raise click.BadParameter(f"no remedy {name!r}; there is {', '.join(known)}", ctx, param)
    return ids


def judging_options(command: _Function) -> _Function:
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
    return report_options(command)


def report_options(command: _Function) -> _Function:
    """Add the options that write a report to files."""
    for name, what in (
        ("--sarif", "Write the findings as SARIF, for code hosts and editors."),
        ("--json", "Write the report as JSON."),
        ("--html", "Write the report as a page."),
    ):
        command = click.option(name, type=Output(), metavar="F", help=what)(command)
    return command


def program_arguments(command: _Function) -> _Function:
    """Add the program that is run: a script, a console command or a module, and what follows it."""
    for parameter in (
        click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]..."),
        click.argument("target"),
        click.option("-m", "module", is_flag=True, help="TARGET is a module, as in python -m."),
    ):
        command = parameter(command)
    return command
