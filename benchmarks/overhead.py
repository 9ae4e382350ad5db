"""What does it cost to watch a run? precdoctor beside what people use instead, in one run.

Every tool trains the same model in a process of its own. The processes take turns, one step each, so that
whatever else the machine does hits all of them alike. Ten turns make a round; the ratio of a round is the
tool's CPU time over that of the same ten steps without a tool.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import torch
from tabulate import tabulate

from workloads import FORMATS, WORKLOADS, Workload

#: steps of a round: by default the Doctor observes about one in ten
ROUND = 10
#: steps before the first round: optimizer state exists, the Doctor's dense first steps are over
WARM_UP = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A tool at work."""

    #: stands in for `optimizer.step`
    step: Callable[[], Any]
    #: seconds spent watching so far, by the tool's own clock
    own_seconds: Callable[[], float] = float


Attach = Callable[[Workload, ExitStack], Attached]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A way to watch a training run."""

    name: str
    attach: Attach
    #: module that must be there
    module: str = "torch"


def nothing(work: Workload, _: ExitStack) -> Attached:
    """Train unwatched."""
    return Attached(step=work.optimizer.step)


def doctor(**options: int) -> Attach:
    """Return a tool that watches with a `precdoctor.Doctor` of these options."""

    def attach(work: Workload, stack: ExitStack) -> Attached:
        from precdoctor.doctor import Doctor

        watching = stack.enter_context(Doctor(work.model, work.optimizer, **options))
        return Attached(step=work.optimizer.step, own_seconds=lambda: watching.observing_seconds)

    return attach


def naive(work: Workload, _: ExitStack) -> Attached:
    """Watch as one does by hand: copy, step, subtract, reduce to a number."""

    def step() -> None:
        before = {name: p.detach().clone() for name, p in work.model.named_parameters()}
        work.optimizer.step()
        for name, p in work.model.named_parameters():
            (p.detach() - before[name]).abs().mean().item()
            if p.grad is not None:
                p.grad.norm().item()

    return Attached(step=step)


def wandb_watch(work: Workload, stack: ExitStack) -> Attached:
    """Watch with wandb's histograms of weights and gradients at every step, offline."""
    import wandb

    folder = stack.enter_context(tempfile.TemporaryDirectory())
    run = stack.enter_context(wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True)))
    run.watch(work.model, log="all", log_freq=1)

    def step() -> None:
        work.optimizer.step()
        run.log({"step": 1})

    return Attached(step=step)


TOOLS = {
    tool.name: tool
    for tool in (
        Tool(name="none", attach=nothing),
        Tool(name="none-again", attach=nothing),
        Tool(name="doctor", attach=doctor(), module="precdoctor.doctor"),
        Tool(name="doctor-every-step", attach=doctor(every=1), module="precdoctor.doctor"),
        Tool(name="doctor-exact", attach=doctor(every=1, watch=0), module="precdoctor.doctor"),
        Tool(name="naive", attach=naive),
        Tool(name="wandb", attach=wandb_watch, module="wandb"),
    )
}


def peak_bytes() -> int:
    """Return the largest resident size of this process since the peak was last reset (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def take_turns(tool: str, workload: str, dtype: str, threads: int, turns: Connection) -> None:
    """Take a step at each message; answer with its CPU, wall and own seconds."""
    torch.set_num_threads(threads)
    work = Workload(workload, FORMATS[dtype])
    with ExitStack() as stack:
        attached = TOOLS[tool].attach(work, stack)
        while turns.recv():
            own, wall, cpu = attached.own_seconds(), time.perf_counter(), time.process_time()
            work.backward()
            attached.step()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            turns.send(Times(cpu=cpu, wall=wall, own=attached.own_seconds() - own))


def weigh(tool: str, workload: str, dtype: str, threads: int, turns: Connection) -> None:
    """Answer with how much the tool raises the peak of the process's memory, in bytes per parameter byte."""
    torch.set_num_threads(threads)
    toy = Workload("toy", FORMATS[dtype])
    with ExitStack() as stack:  # the code that the tool loads is not what grows with the model
        attached = TOOLS[tool].attach(toy, stack)
        for _ in range(3):
            toy.backward()
            attached.step()
    work = Workload(workload, FORMATS[dtype])
    for _ in range(2):
        work.backward()
        work.optimizer.step()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    work.backward()
    work.optimizer.step()
    before = peak_bytes()
    with ExitStack() as stack:
        attached = TOOLS[tool].attach(work, stack)
        for _ in range(3):
            work.backward()
            attached.step()
        turns.send((peak_bytes() - before) / work.parameter_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What one step took, in seconds."""

    #: CPU time of all threads of the process
    cpu: float
    wall: float
    #: the tool's part of the wall time, by its own clock
    own: float


class Worker:
    """A process that trains under one tool."""

    def __init__(self, job: Callable[..., None], tool: Tool, *arguments: Any) -> None:
        self.tool = tool
        self.connection, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=job, args=(tool.name, *arguments, other), daemon=True)
        self._process.start()
        other.close()
        self.steps: list[Times] = []

    def step(self) -> Times:
        """Let it take one step."""
        self.connection.send(True)
        times: Times = self.connection.recv()
        return times

    def end(self) -> None:
        """Let it finish and wait for it."""
        self.connection.send(False)
        self._process.join()


def measure(tools: list[Tool], rounds: int, *arguments: Any) -> list[Worker]:
    """Let the tools take turns and return them with their times."""
    workers = [Worker(take_turns, tool, *arguments) for tool in tools]
    order, shuffle = list(workers), random.Random(0).shuffle
    for turn in range(WARM_UP + rounds * ROUND):
        shuffle(order)  # or one tool would always run in the wake of the same other one
        for worker in order:
            times = worker.step()
            if turn >= WARM_UP:
                worker.steps.append(times)
    for worker in workers:
        worker.end()
    return workers


def measure_memory(tool: Tool, *arguments: Any) -> float:
    """Return the tool's extra peak memory in parameter bytes."""
    # Freed memory goes back at once, so that the peak is what is held and not what the allocator keeps.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"
    try:
        worker = Worker(weigh, tool, *arguments)
        extra: float = worker.connection.recv()
        worker._process.join()
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"], os.environ["MALLOC_TRIM_THRESHOLD_"]
    return extra


def by_round(worker: Worker) -> list[float]:
    """Return the CPU seconds of each round."""
    times = [step.cpu for step in worker.steps]
    return [sum(times[start : start + ROUND]) for start in range(0, len(times), ROUND)]


def row(worker: Worker, baseline: Worker, extra: float) -> list[str]:
    """Return the table row of a tool."""
    cpu = by_round(worker)
    ratios = sorted(mine / plain for mine, plain in zip(cpu, by_round(baseline), strict=True))
    own, wall = sum(step.own for step in worker.steps), sum(step.wall for step in worker.steps)
    return [
        worker.tool.name,
        f"{statistics.median(cpu) / ROUND * 1e3:.1f}",
        f"{statistics.median(ratios):.3f}",
        f"{ratios[0]:.3f} .. {ratios[-1]:.3f}",
        f"{own / (wall - own):.2%}" if own else "",
        "" if worker is baseline else f"{extra:.1%}",
    ]


@click.command()
@click.option(
    "--workload", "names", type=click.Choice(list(WORKLOADS)), multiple=True, help="Default: all but toy."
)
@click.option("--dtype", "dtypes", type=click.Choice(list(FORMATS)), multiple=True, help="Default: both.")
@click.option("--tool", "tools", type=click.Choice(list(TOOLS)), multiple=True, help="Default: all.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Of ten steps.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(
    names: tuple[str, ...], dtypes: tuple[str, ...], tools: tuple[str, ...], rounds: int, threads: int
) -> None:
    """Measure what watching costs, and print a table per workload."""
    chosen: list[Tool] = []
    missing: list[Tool] = []
    for tool in TOOLS.values():
        if tool.name == "none" or not tools or tool.name in tools:
            there = importlib.util.find_spec(tool.module) is not None
            (chosen if there else missing).append(tool)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {threads} thread(s)")
    for name in names or [name for name in WORKLOADS if name != "toy"]:
        for dtype in dtypes or FORMATS:
            workers = measure(chosen, rounds, name, dtype, threads)
            rows = [row(w, workers[0], measure_memory(w.tool, name, dtype, threads)) for w in workers]
            rows += [[tool.name, "not installed"] for tool in missing]
            headers = ["tool", "ms per step", "ratio", "lowest .. highest", "own time", "extra memory"]
            print(f"\n{name} {dtype}: median of {rounds} rounds of {ROUND} steps\n")
            print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), flush=True)


if __name__ == "__main__":
    main()
