"""Fix: cures written into the user's source, proved on a copy. Imports no torch."""

from precdoctor.fix.candidates import with_diffs
from precdoctor.fix.command import FixError, fix
from precdoctor.fix.proof import Program

__all__ = ["FixError", "Program", "fix", "with_diffs"]
