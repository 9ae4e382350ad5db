"""What the parts of the terminal report share: symbols, colours, wrapping."""

from __future__ import annotations

import sys
import textwrap

import click

from precdoctor.report import words

SYMBOLS = {
    "ok": "✓", "healthy": "✓", "ill": "✗", "unknown": "?", "error": "✗", "warning": "!", "note": "·",
    "cured": "✓", "helped": "↑", "no effect": "·", "harmed": "✗", "does not apply": "?",
}  # fmt: skip
COLOURS = {
    "ok": "green", "healthy": "green", "ill": "red", "unknown": "yellow", "error": "red",
    "warning": "yellow", "note": "cyan", "cured": "green", "helped": "cyan", "no effect": "yellow",
    "harmed": "red", "does not apply": "yellow",
}  # fmt: skip
_ASCII = str.maketrans(
    {"✓": "+", "✗": "x", "·": "-", "×": "x", "±": "+/-", "…": "~", "−": "-", "≥": ">=", "≤": "<=", "↑": "^"}
)


def symbol(status: str) -> str:
    """Return the status as one coloured character."""
    return click.style(SYMBOLS[status], fg=COLOURS[status], bold=True)


def heading(text: str) -> str:
    """Return the title of a section."""
    return click.style(text, bold=True)


def wrap(text: str, width: int, indent: str, first: str | None = None) -> str:
    """Return the text in lines of that width, safe to print; ``first`` begins the first line."""
    start = indent if first is None else first
    return textwrap.fill(
        words.printable(text), width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
    )


def clip(text: str, width: int) -> str:
    """Return the text cut at the width."""
    return text if len(text) <= width else text[: width - 1] + "…"


def showable(text: str) -> str:
    """Return the text in plain ASCII where stdout or stderr could not show more."""
    return text if _can_show(text) else text.translate(_ASCII).encode("ascii", "backslashreplace").decode()


def _can_show(text: str) -> bool:
    for stream in (sys.stdout, sys.stderr):
        try:
            text.encode(getattr(stream, "encoding", None) or "utf-8")
        except (UnicodeEncodeError, LookupError):
            return False
    return True
