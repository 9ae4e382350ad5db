"""`diff`: checkpoints in, report out."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from precdoctor.checkpoints.contents import Progress, look_through
from precdoctor.evidence import Evidence, Run
from precdoctor.formats import BFLOAT16, FLOAT16, Format, by_name
from precdoctor.report import Report

#: formats in which the next update is tried beside the stored one
FORMATS = (BFLOAT16.name, FLOAT16.name)


def diff(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str] | None = None,
    *,
    formats: Sequence[str | Format] = FORMATS,
    select: Collection[str] = (),
    ignore: Collection[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Compare two checkpoints of one run, the earlier one first, or examine one alone.

    A checkpoint is a safetensors file, a torch.save file, the index or the directory of a sharded one, or a
    torch distributed checkpoint. ``formats`` are those in which the next update is tried, beside the stored
    one, where the last file holds state of an optimizer. ``select`` and ``ignore`` choose rules.
    ``progress`` is told how many bytes of how many have been read.

    The rows are in ``report.evidence.contents``. Raises `CheckpointError` for what can't be read, and
    `precdoctor.formats.FormatError` for a format that there is not.
    """
    return Report.of(examine(first, second, formats=formats, progress=progress), select, ignore)


def examine(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str] | None = None,
    *,
    formats: Sequence[str | Format] = FORMATS,
    progress: Progress | None = None,
) -> Evidence:
    """Return what was seen of one or two checkpoints, as `diff` does, without judging it."""
    wanted = [by_name(fmt) if isinstance(fmt, str) else fmt for fmt in formats]
    started, begun = datetime.datetime.now().astimezone(), time.perf_counter()
    paths = [Path(first), *([] if second is None else [Path(second)])]
    contents, limits = look_through(
        paths[0], paths[1] if len(paths) > 1 else None, wanted, progress or _silent
    )
    return Evidence(
        run=Run(
            target="diff",
            argv=tuple(os.fspath(path) for path in paths),
            ended="finished",
            torch=torch.__version__,
            python=platform.python_version(),
            started=started.isoformat(timespec="seconds"),
            seconds=time.perf_counter() - begun,
            limits=limits,
        ),
        contents=contents,
    )


def _silent(done: int, total: int) -> None:
    """Show nothing."""
