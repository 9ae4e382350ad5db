"""Run the commands that pages show, and compare what they print with what the pages say.

python docs/outputs.py            run those of README.md and docs/tutorial.md; exit 1 where a page is stale
python docs/outputs.py --out D    and write what each printed to D, to be pasted

A block of a page that begins with "$ " is a command and its output. Commands of a page run in order, in
one folder, which also holds the files that the page tells to save ("Save this as `train.py`"). Lines are
compared without their numbers, which differ from one machine to another; "[…]" stands for what is left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/tutorial.md")
#: share of a block's lines that must be there: a longer number may wrap a line elsewhere, or swap two rows
AGREEING = 0.85
#: seconds that one command may take
LIMIT_S = 900


@dataclass(frozen=True, slots=True)
class Shown:
    """A command that a page shows, and its output there."""

    line: int
    command: str
    output: tuple[str, ...]


def main(arguments: list[str]) -> int:
    """Check all pages; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="*", default=PAGES)
    parser.add_argument("--out", type=Path, help="folder for what the commands print")
    options = parser.parse_args(arguments)
    differ = 0
    for name in options.pages:
        for number, (shown, printed) in enumerate(run((ROOT / name).read_text("utf-8"))):
            missing = [line for line in shown.output if masked(line) not in set(map(masked, printed))]
            share = 1 - len(missing) / max(len(shown.output), 1)
            print(f"{name}:{shown.line}: {share:.0%} of its lines  $ {shown.command}", flush=True)
            if share < AGREEING:
                differ += 1
                print("\n".join(f"    not printed: {line}" for line in missing))
            if options.out is not None:
                options.out.mkdir(parents=True, exist_ok=True)
                file = options.out / f"{Path(name).stem}-{number:02}.txt"
                file.write_text("\n".join([f"$ {shown.command}", *printed, ""]), encoding="utf-8")
    return 1 if differ else 0


def run(page: str) -> Iterator[tuple[Shown, list[str]]]:
    """Yield the commands of a page, each with the lines that it printed."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "sample_models", Path(folder) / "sample_models")
        for name, text in saved(page):
            (Path(folder) / name).write_text(text, encoding="utf-8")
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        environment = {**os.environ, "PATH": path, "COLUMNS": "100"}
        for shown in commands(page):
            done = subprocess.run(
                shown.command,
                shell=True,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
            yield shown, done.stdout.splitlines()


def saved(page: str) -> Iterator[tuple[str, str]]:
    """Yield the files that a page tells to save: name and text."""
    for found in re.finditer(r"[Ss]ave this as `([\w.]+)`.*?```python\n(.*?)```", page, re.DOTALL):
        yield found[1], found[2]


def commands(page: str) -> Iterator[Shown]:
    """Yield the commands of a page with what it says that they print, in order."""
    for block in re.finditer(r"```text\n(\$ .*?)```", page, re.DOTALL):
        start = page[: block.start()].count("\n") + 2
        lines = block[1].splitlines()
        at = [i for i, line in enumerate(lines) if line.startswith("$ ")]
        for first, end in zip(at, [*at[1:], len(lines)], strict=True):
            output = tuple(line for line in lines[first + 1 : end] if masked(line) and "[…]" not in line)
            yield Shown(start + first, lines[first][2:].split("  #")[0].rstrip(), output)


def masked(line: str) -> str:
    """Return a line without its numbers, rules and widths."""
    line = re.sub(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "#", line)
    return re.sub(r"\s+", " ", re.sub(r"-{2,}", "-", line)).strip()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
