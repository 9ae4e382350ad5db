"""The retake: a run whose loss turned inf or NaN while nobody looked is run again, with a look at that step.

What made the first inf is gone once weights are NaN. A run that can be repeated shows it the second time.
"""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from precdoctor.evidence import Evidence, EvidenceError, load
from precdoctor.rules.non_finite_origin import unseen_since

#: a second run may take this many times as long as the first did up to that step, and some seconds
_LONGER, _GRACE_SECONDS = 3.0, 30.0


def wanted(evidence: Evidence) -> int | None:
    """Return the steps made before a loss that is not finite and whose origin was not seen; None: no need."""
    return unseen_since(evidence) if evidence.probed else None


def retake(evidence: Evidence, step: int, *, module: bool = False) -> Evidence:
    """Run the program of ``evidence`` again up to a step, and return the evidence with what is seen there.

    In a process of its own, whose output goes nowhere. Where the second run went another way, or did not
    come that far, its evidence is left out, and `Run.limits` says so.
    """
    run = evidence.run
    with tempfile.TemporaryDirectory(prefix="precdoctor-") as folder:
        saved = Path(folder) / "evidence.json"
        command = [sys.executable, "-m", "precdoctor", "scan", "--no-retake", "--fail-on", "never"]
        command += ["--steps", str(step + 1), "--look-at", str(step), "--save", str(saved)]
        try:
            subprocess.run(
                [*command, *(["-m"] if module else []), run.target, *run.argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_GRACE_SECONDS + _LONGER * run.seconds,
                check=False,
            )
            again = load(saved)
        except (OSError, subprocess.TimeoutExpired, EvidenceError) as error:
            return _without(evidence, step, f"it gave nothing ({type(error).__name__})")
    other = _parting(evidence.losses, again.losses, step)
    if other:
        return _without(evidence, step, other)
    return dataclasses.replace(evidence, exactness=again.exactness, gradient_flow=again.gradient_flow)


def _without(evidence: Evidence, step: int, why: str) -> Evidence:
    sentence = f"the program was run again to look at what led to step {step:,}, and {why}"
    run = dataclasses.replace(evidence.run, limits=(*evidence.run.limits, sentence))
    return dataclasses.replace(evidence, run=run)


def _parting(first: Sequence[tuple[int, float]], second: Sequence[tuple[int, float]], step: int) -> str:
    """Return how the losses of two runs differ up to a step, "" where they are the same."""
    values: defaultdict[int, set[float]] = defaultdict(set)
    for at, loss in first:
        values[at].add(loss)
    reached = False
    for at, loss in second:
        if at == step and not math.isfinite(loss):
            reached = True
        elif at < step and at in values and loss not in values[at]:
            known = ", ".join(f"{value:.6g}" for value in sorted(values[at]))
            return f"the loss after {at:,} steps was {loss:.6g}, not {known}: it cannot be repeated"
    return "" if reached else "its loss stayed finite: it cannot be repeated"
