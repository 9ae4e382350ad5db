"""The page of the commands, docs/cli.md: the `--help` of each, as a terminal of 100 columns shows it."""

from __future__ import annotations

import click

from precdoctor.cli import main


def page() -> str:
    """Return the text of docs/cli.md."""
    parts = [
        "# Commands\n\nThe same text as `--help`; generated from the code by `python docs/generate.py`.\n",
        _section(main, "precdoctor", None),
    ]
    group = click.Context(main, info_name="precdoctor", **main.context_settings)
    parts += [_section(command, name, group) for name, command in main.commands.items()]
    return "\n".join(parts)


def _section(command: click.Command, name: str, parent: click.Context | None) -> str:
    settings = {**command.context_settings, "max_content_width": 100, "terminal_width": 100}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    return f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
