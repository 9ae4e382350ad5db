"""A line of the user's code: what a finding points at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A line of the user's code."""

    #: path relative to the working directory where it lies below it, else absolute
    file: str
    #: line number, from 1
    line: int
    #: name of the enclosing function; empty at module level
    function: str = ""
    #: the source line, stripped; empty when the source could not be read
    code: str = ""
    #: True when recorded as the line ran, False when found by searching the source
    certain: bool = True
