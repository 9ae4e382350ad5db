"""Edits as a unified diff, byte for byte: line ends and encodings are those of the files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path


def unified(changes: Mapping[Path, tuple[bytes, bytes]], root: Path) -> bytes:
    """Return changes (bytes before and after) as ``git apply`` and ``patch -p1`` take them in ``root``."""
    text = b""
    for path, (before, after) in sorted(changes.items()):
        name = os.path.relpath(path, root.resolve()).replace(os.sep, "/").encode()
        lines = difflib.diff_bytes(
            difflib.unified_diff, _lines(before), _lines(after), b"a/" + name, b"b/" + name
        )
        for line in lines:
            text += line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"
    return text


def _lines(text: bytes) -> list[bytes]:
    """Return lines with their ends; unlike ``splitlines`` a lone carriage return ends none."""
    *whole, last = text.split(b"\n")
    return [line + b"\n" for line in whole] + ([last] if last else [])
