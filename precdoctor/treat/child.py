"""One trial, in a process of its own: ``python -m precdoctor.treat.child SPEC.json``.

The program runs as under ``precdoctor scan``, treated from outside. What was seen is written beside the spec.
"""

from __future__ import annotations

import json
import random
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from precdoctor import script
from precdoctor.evidence import Evidence, save
from precdoctor.program import TargetError, from_module, from_path
from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.remedy import DoesNotApply, Dose
from precdoctor.treat import travel
from precdoctor.treat.store import sha256

if TYPE_CHECKING:
    import torch

    from precdoctor.treat.gauges import Clock, Memory

#: for programs that do not seed themselves: all trials draw the same numbers
SEED = 0


class Run(Intervention):
    """The treatment of one run, and what is measured of it besides evidence."""

    def __init__(self, dose: Dose | None) -> None:
        super().__init__(dose)
        #: the file that runs as ``__main__``
        self.main: str | None = None
        self.travels: list[travel.Travel] = []
        self.clock: Clock | None = None
        self.memory: Memory | None = None
        self._travel_of: weakref.WeakKeyDictionary[torch.optim.Optimizer, travel.Travel] = (
            weakref.WeakKeyDictionary()
        )

    def __enter__(self) -> Run:
        import torch

        from precdoctor.observe.steps.monitor import StepMonitor
        from precdoctor.treat.gauges import Clock, Memory

        self.main = getattr(sys.modules["__main__"], "__file__", None)
        super().__enter__()
        torch.manual_seed(SEED)
        self.clock, self.memory = Clock(), Memory()
        self.patches.wrap(StepMonitor, "quietly", self.clock.around)
        self.at_first_step(self.clock.around(self._begin))
        self.after_step(self._measure)
        return self

    def _begin(self, optimizer: torch.optim.Optimizer) -> None:
        self._travel_of[optimizer] = track = travel.Travel(self.named(optimizer))
        self.travels.append(track)

    def _measure(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.clock is not None
        self.clock.step_ended(optimizer)
        self.clock.around(self._look)(optimizer)

    def _look(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.memory is not None
        self.memory.step_ended(optimizer, self.held_bytes)
        self._travel_of[optimizer].note()


def main(spec_path: Path) -> None:
    """Run the trial that a spec describes and write what came of it."""
    spec = json.loads(spec_path.read_text(encoding="utf-8"))
    folder, dose = spec_path.parent, None if spec["dose"] is None else Dose(**spec["dose"])
    run = Run(dose)
    random.seed(SEED)
    np.random.seed(SEED)
    evidence = script.scan(
        spec["target"],
        spec["argv"],
        module=spec["module"],
        steps=spec["steps"],
        every=1,
        intervention=run,
    )
    save(evidence, folder / "evidence.json")
    travels = {name: values for track in run.travels for name, values in track.found().items()}
    travel.save(travels, folder / "travel.npz")
    is_timed = spec["alone"] and not run.is_slow
    result = {
        **_ending(run, evidence),
        "step_seconds": run.clock.step_seconds if run.clock is not None and is_timed else None,
        "bytes_per_parameter": run.memory.bytes_per_parameter if run.memory is not None else None,
        "sources": dict(_sources(spec, run.main)),
    }
    (folder / "result.json").write_text(
        json.dumps(result), encoding="utf-8"
    )  # last: it says that all is there
    script.leave(0)


def _ending(run: Run, evidence: Evidence) -> dict[str, str]:
    """Return how the run ended: "ran", "failed" or "does not apply", and why."""
    error, ended = evidence.run.error, evidence.run.ended
    kind, _, text = error.partition(": ")
    if kind.rpartition(".")[2] == DoesNotApply.__name__:
        return {"status": "does not apply", "error": text}
    if ended not in ("finished", "stopped"):
        return {"status": "failed", "error": error or f"{ended} with code {evidence.run.exit_code}"}
    try:
        run.check()
    except DoesNotApply as reason:
        return {"status": "does not apply", "error": str(reason)}
    return {"status": "ran", "error": ""}


def _sources(spec: dict[str, Any], main_file: str | None) -> Iterable[tuple[str, str]]:
    """Yield the user's files that ran, with their hashes."""
    if "torch" not in sys.modules:
        return
    from precdoctor.observe.frames import UserCode

    try:
        own = (from_module if spec["module"] else from_path)(spec["target"]).own
    except TargetError:
        own = ()
    code = UserCode(own)
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    for file in sorted({f for f in files if f and code.is_user(f)} | ({main_file} if main_file else set())):
        path = Path(file).absolute()
        if path.is_file():
            yield str(path), sha256(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
