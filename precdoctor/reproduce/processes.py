"""Run commands side by side, one per core, with a line of progress for each."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

#: seconds between looks at what runs
_PAUSE = 0.05
#: lines of a failed command's errors that are shown
_TAIL = 15


def side_by_side(
    commands: Mapping[str, Sequence[str]],
    folder: Path,
    tell: Callable[[str], str],
    *,
    at_once: int | None = None,
) -> None:
    """Run the commands in their order, as many at once as there are cores, and wait for all.

    What a command prints is written to NAME.out and NAME.err in the folder; ``tell`` says of a finished one
    what came of it. Raises `click.ClickException` for the first that fails, and ends those that run.
    """
    waiting = list(commands.items())
    running: dict[str, subprocess.Popen[bytes]] = {}
    at_once = cores() if at_once is None else at_once
    done = 0
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name, command = waiting.pop(0)
                running[name] = _start(command, folder / name)
            time.sleep(_PAUSE)
            for name, process in [(n, p) for n, p in running.items() if p.poll() is not None]:
                del running[name]
                if process.returncode:
                    raise click.ClickException(_failure(name, process.returncode, folder))
                done += 1
                click.echo(f"[{done}/{len(commands)}] {name}: {tell(name)}", err=True)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(command: Sequence[str], stem: Path) -> subprocess.Popen[bytes]:
    with (
        stem.with_name(f"{stem.name}.out").open("wb") as out,
        stem.with_name(f"{stem.name}.err").open("wb") as err,
    ):
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)


def _failure(name: str, code: int, folder: Path) -> str:
    lines = (folder / f"{name}.err").read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"{name} ended with exit code {code}", *lines[-_TAIL:]])
