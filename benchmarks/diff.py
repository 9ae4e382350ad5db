"""How fast `precdoctor diff` reads checkpoints, beside a plain read of the same files.

python benchmarks/diff.py                       # files of 256 MB, seven rounds: some minutes
python benchmarks/diff.py --megabytes 1024 --folder /data

The two take turns. "cached": the files are in the page cache; "disk": they were dropped from it before each
turn (Linux only; a machine that keeps its own cache below may be faster than its disk).
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate

from precdoctor.checkpoints.api import examine

#: rows and columns of a tensor: a matrix of a model of a billion parameters
SIDE = 2048
#: bytes that a plain read asks for at a time, into the same memory
BLOCK = 1 << 20


def main() -> None:
    """Measure all cases and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=256, help="size of each file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None, help="where the files are written, and removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = []
        for name, files in written(Path(folder), options.megabytes << 20).items():
            for where, drop in (("cached", False), ("disk", True)):
                if drop and not hasattr(os, "posix_fadvise"):
                    continue
                rows.append([name, where, *measured(files, options.rounds, drop)])
                print(f"{name}, {where}: done", flush=True)
    columns = ["files", "from", "plain GB/s", "diff GB/s", "diff / plain", "lowest", "highest", "CPU s/GB"]
    print(tabulate(rows, headers=columns, tablefmt="github", floatfmt=".2f"))


def written(folder: Path, size: int) -> dict[str, list[Path]]:
    """Write the checkpoints; return what is compared, by name."""
    torch.manual_seed(0)
    cases: dict[str, list[Path]] = {}
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        count = size // (SIDE * SIDE * dtype.itemsize)
        first = {f"layers.{i}.weight": torch.randn(SIDE, SIDE, dtype=dtype) * 0.02 for i in range(count)}
        moved = {key: w + 1e-3 * torch.randn_like(w) for key, w in first.items()}
        still = {key: moved[key] if i % 10 == 0 else w for i, (key, w) in enumerate(first.items())}
        paths = [folder / f"{name}-{which}.pt" for which in ("first", "moved", "tenth")]
        for path, weights in zip(paths, (first, moved, still), strict=True):
            torch.save(weights, path)
        cases[f"one, {name}"] = paths[:1]
        cases[f"two, {name}, all moved"] = paths[:2]
        cases[f"two, {name}, a tenth moved"] = [paths[0], paths[2]]
    return cases


def measured(files: list[Path], rounds: int, drop: bool) -> list[float]:
    """Return both speeds in GB/s (medians), the ratio with its lowest and highest, and CPU seconds per GB."""
    amount = sum(file.stat().st_size for file in files)
    plain: list[float] = []
    ours: list[float] = []
    processor: list[float] = []
    for turn in range(rounds + 1):
        pair = [(plain, read_plainly), (ours, examined)]
        for times, action in pair if turn % 2 else reversed(pair):
            if drop:
                forget(files)
            seconds, busy = clocked(action, files)
            if turn:  # the first one warms up
                times.append(amount / seconds / 1e9)
            if turn and action is examined:
                processor.append(busy / amount * 1e9)
    ratios = [b / a for a, b in zip(plain, ours, strict=True)]
    middle = [statistics.median(each) for each in (plain, ours, ratios, processor)]
    return [*middle[:3], min(ratios), max(ratios), middle[3]]


def clocked(action: Callable[[list[Path]], object], files: list[Path]) -> tuple[float, float]:
    """Return the seconds that an action takes, by the clock and of the processor (all threads)."""
    start, busy = time.perf_counter(), time.process_time()
    action(files)
    return time.perf_counter() - start, time.process_time() - busy


def read_plainly(files: list[Path]) -> None:
    """Read the files from beginning to end."""
    memory = memoryview(bytearray(BLOCK))
    for file in files:
        with io.FileIO(file) as stream:
            while stream.readinto(memory):
                pass


def examined(files: list[Path]) -> None:
    """Do what the command does before it shows anything."""
    examine(*files)


def forget(files: list[Path]) -> None:
    """Drop the files from the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == "__main__":
    main()
