"""Treat: run a program again under each cure that its findings ask for, and judge what came of it.

Imports no torch: that is left to the processes of the trials.
"""

from precdoctor.treat.program import Program
from precdoctor.treat.runner import Treatment, treat

__all__ = ["Program", "Treatment", "treat"]
