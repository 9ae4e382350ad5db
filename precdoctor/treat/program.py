"""What is run again and again: the user's program, from one directory and for one number of steps."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from precdoctor.program import from_module, from_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A script, a module or a console command with its arguments."""

    target: str
    argv: tuple[str, ...] = ()
    module: bool = False
    #: optimizer steps of each run
    steps: int
    #: where it runs
    folder: str = field(default_factory=os.getcwd)

    def check(self) -> None:
        """Raise `TargetError` where there is nothing to run."""
        if self.module:
            from_module(self.target)
        else:
            from_path(self.target)

    @property
    def identity(self) -> str:
        """Return what is run: a module's name, else the absolute path of the script or command."""
        if self.module or Path(self.target).exists():
            return self.target if self.module else str(Path(self.target).absolute())
        return shutil.which(self.target) or self.target
