"""Trials that are kept, so that none is run again while the program it tried is the same.

Each lies in a folder of its own below the user's cache. It is written under another name and then renamed, so
that what is there is whole; whatever can't be read is as good as not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from precdoctor.evidence import Evidence, EvidenceError, load
from precdoctor.remedies import Dose
from precdoctor.treat import travel
from precdoctor.treat.program import Program

#: trials that nobody asked for so long are removed
KEPT_SECONDS = 30 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What one run left behind."""

    #: "ran", "failed" (error: last line of the traceback) or "does not apply" (error: why)
    status: str
    error: str = ""
    #: None where the process died before it could write any
    evidence: Evidence | None = None
    travels: travel.Travels | None = None
    #: median step without observing; None where other trials ran at the same time, or the treatment itself
    #: took time
    step_seconds: float | None = None
    bytes_per_parameter: float | None = None
    #: what the program printed
    log: Path
    #: not run again
    kept: bool = False


class Store:
    """The kept trials of all programs."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = _cache_folder() if root is None else root
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError:  # no place to keep anything in
            self.root = Path(tempfile.mkdtemp(prefix="precdoctor-trials-"))
        self._prune()

    def begin(self, program: Program, dose: Dose | None) -> Path:
        """Return an empty folder for a trial that is going to run."""
        return Path(tempfile.mkdtemp(prefix=f".{key(program, dose)[:16]}-", dir=self.root))

    def keep(self, folder: Path, program: Program, dose: Dose | None) -> Path:
        """Give the folder of a trial that has ended its place, and return that."""
        place = self.root / key(program, dose)
        shutil.rmtree(place, ignore_errors=True)
        try:
            return folder.rename(place)
        except OSError:  # another process was faster, or holds a file there
            return folder

    def find(self, program: Program, dose: Dose | None) -> Ran | None:
        """Return the kept trial, where the program's files are still those that it ran."""
        place = self.root / key(program, dose)
        try:
            sources = json.loads((place / "result.json").read_text(encoding="utf-8"))["sources"]
            ran = read(place, kept=True)
            if ran.status == "failed" or not sources:
                return None
            same = all(sha256(Path(file)) == known for file, known in sources.items())
            os.utime(place)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EvidenceError):
            return None
        return ran if same else None

    def _prune(self) -> None:
        for folder in self.root.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > KEPT_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)


def read(folder: Path, *, kept: bool = False) -> Ran:
    """Return what a trial left in its folder.

    OSError, ValueError, KeyError or TypeError tell that it is not whole.
    """
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return Ran(
        status=str(result["status"]),
        error=str(result["error"]),
        evidence=load(folder / "evidence.json"),
        travels=travel.load(folder / "travel.npz"),
        step_seconds=result["step_seconds"],
        bytes_per_parameter=result["bytes_per_parameter"],
        log=folder / "log.txt",
        kept=kept,
    )


def key(program: Program, dose: Dose | None) -> str:
    """Return what tells a trial from all others."""
    parts = [
        program.identity,
        program.argv,
        program.module,
        program.folder,
        program.steps,
        None if dose is None else asdict(dose),
        _torch_version(),
        platform.python_version(),
        _own_version(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "precdoctor" / "trials"


def _torch_version() -> str:
    try:
        return version("torch")  # known without importing it
    except PackageNotFoundError:
        return ""


@cache
def _own_version() -> str:
    """Return the hash of precdoctor itself: a checkout changes without its version."""
    package = Path(__file__).parents[1]
    files = sorted(path for path in package.rglob("*.py") if "sample_models" not in path.parts)
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()
