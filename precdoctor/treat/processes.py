"""Processes of their own for trials: a few at a time, none left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from precdoctor.remedies import Dose
from precdoctor.treat.program import Program
from precdoctor.treat.store import Ran, Store, read


@dataclass
class Processes:
    """A few processes at a time, each with one trial; all end with the context."""

    program: Program
    store: Store
    fresh: bool
    jobs: int
    #: seconds after which a trial is given up; None: never
    patience: float | None = None
    #: what each trial took, by its log
    seconds: dict[Path, float] = field(default_factory=dict)
    _live: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: bool = False

    def __enter__(self) -> Processes:
        self._pool = ThreadPoolExecutor(max_workers=self.jobs)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            for process in self._live:
                _kill(process)
        self._pool.shutdown(cancel_futures=True)

    def start(self, dose: Dose | None) -> Future[Ran]:
        """Return the trial of a dose (None: untreated), kept or run as soon as there is room."""
        return self._pool.submit(self._run, dose)

    def _run(self, dose: Dose | None) -> Ran:
        kept = None if self.fresh else self.store.find(self.program, dose)
        if kept is not None:
            return kept
        folder = self.store.begin(self.program, dose)
        try:
            start = time.perf_counter()
            failure = self._execute(folder, dose)
            folder = self.store.keep(folder, self.program, dose)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.seconds[folder / "log.txt"] = time.perf_counter() - start
        try:
            return read(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return Ran(status="failed", error=failure or f"it left nothing: {error}", log=folder / "log.txt")

    def _execute(self, folder: Path, dose: Dose | None) -> str:
        """Run one trial to its end; return how its process failed, if it did."""
        program = self.program
        spec = {
            "target": program.target,
            "argv": program.argv,
            "module": program.module,
            "steps": program.steps,
            "dose": None if dose is None else asdict(dose),
            "alone": self.jobs == 1,
        }
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        command = [sys.executable, "-m", "precdoctor.treat.child", str(folder / "spec.json")]
        with (folder / "log.txt").open("wb") as log:
            with self._lock:
                if self._ended:
                    raise CancelledError
                process = subprocess.Popen(
                    command,
                    cwd=program.folder,
                    env={**os.environ, "PYTHONHASHSEED": "0"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is ours to pass on, and whatever it starts ends with it
                )
                self._live.add(process)
            try:
                code = process.wait(self.patience)
            except subprocess.TimeoutExpired:
                _kill(process)
                return f"it was still running after {self.patience:.0f} s"
            finally:
                self._live.discard(process)
        if self._ended:
            raise CancelledError
        return "" if code == 0 else _how_it_died(code, folder / "log.txt")


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _how_it_died(code: int, log: Path) -> str:
    if code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    lines = [line for line in text_of(log).splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with code {code}"


def text_of(path: Path) -> str:
    """Return what a file holds, as well as it can be read."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
