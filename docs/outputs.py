"""Run the commands that pages show, and compare what they print with what the pages say.

python docs/outputs.py            run those of README.md and docs/tutorial.md; exit 1 where a page is stale
python docs/outputs.py --out D    and write what each printed to D, to be pasted

A block of a page that begins with "$ " is a command and its output. Commands of a page run in order, in
one folder, which also holds the files that the page tells to save ("Save this as `train.py`"). Words are
compared in their order, so that lines may wrap elsewhere, and without numbers, which differ from one machine
to another; "[…]" stands for what is left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/tutorial.md")
#: share of a block's words that must be there: other numbers may swap two rows, or one verdict of many
AGREEING = 0.95
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
            missing = words_missing(shown.output, printed)
            share = 1 - len(missing) / max(len(words(shown.output)), 1)
            print(f"{name}:{shown.line}: {share:.0%} of its words  $ {shown.command}", flush=True)
            if share < AGREEING:
                differ += 1
                print(f"    not printed: {' '.join(missing)}")
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
            output = tuple(line for line in lines[first + 1 : end] if "[…]" not in line)
            yield Shown(start + first, lines[first][2:].split("  #")[0].rstrip(), output)


def words_missing(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """Return the words of a page that the command did not print, or not in this order."""
    ours, theirs = words(shown), words(printed)
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    there = {index for block in blocks for index in range(block.a, block.a + block.size)}
    return [word for index, word in enumerate(ours) if index not in there]


def words(lines: Sequence[str]) -> list[str]:
    """Return the words of the lines, # for numbers, without rules of tables."""
    text = re.sub(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "#", " ".join(lines))
    return [word for word in text.split() if not re.fullmatch(r"[-═─]{2,}", word)]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
