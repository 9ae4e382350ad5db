"""Run Python programs side by side, one per core, with a line of progress for each.

Each runs in a process of its own, forked where the system can from one that has imported torch and its
optimizers: importing them takes seconds, as long as a short training.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import click

#: seconds between looks at what runs
_PAUSE = 0.05
#: lines of a failed command's errors that are shown
_TAIL = 15
#: what every program imports: the second is imported by the first optimizer that is made
_IMPORTED = ["torch", "torch._dynamo"]


def side_by_side(
    commands: Mapping[str, Sequence[str]],
    folder: Path,
    tell: Callable[[str], str],
    *,
    at_once: int | None = None,
) -> None:
    """Run the commands in their order, as many at once as there are cores, and wait for all.

    A command is [python, script, argument...] or [python, "-m", module, argument...]. What it prints is
    written to NAME.out and NAME.err in the folder; ``tell`` says of a finished one what came of it.
    Raises `click.ClickException` for the first that fails, and ends those that run.
    """
    waiting = list(commands.items())
    running: dict[str, BaseProcess] = {}
    at_once = cores() if at_once is None else at_once
    done = 0
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name, command = waiting.pop(0)
                running[name] = _start(command, folder / name)
            time.sleep(_PAUSE)
            for name, process in [(n, p) for n, p in running.items() if p.exitcode is not None]:
                del running[name]
                if process.exitcode:
                    raise click.ClickException(_failure(name, process.exitcode, folder))
                done += 1
                click.echo(f"[{done}/{len(commands)}] {name}: {tell(name)}", err=True)
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(command: Sequence[str], stem: Path) -> BaseProcess:
    arguments = (list(command[1:]), str(stem))
    process: BaseProcess
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        process = context.Process(target=_run, args=arguments)
    else:
        process = multiprocessing.get_context("spawn").Process(target=_run, args=arguments)
    process.start()
    return process


def _run(arguments: list[str], stem: str) -> None:
    """Run a program as ``python *arguments`` would."""
    for stream, suffix in ((sys.stdout, ".out"), (sys.stderr, ".err")):
        # the descriptor itself, which processes that the program starts inherit
        with Path(stem + suffix).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def _failure(name: str, code: int, folder: Path) -> str:
    lines = (folder / f"{name}.err").read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"{name} ended with exit code {code}", *lines[-_TAIL:]])
