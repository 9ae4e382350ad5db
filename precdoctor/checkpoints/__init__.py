"""Compares two checkpoints tensor by tensor, or examines one; reads streams and runs nothing in them.

`diff` returns a `Report`; it raises `CheckpointError` with one line for what can't be read.
"""

from precdoctor.checkpoints.api import diff
from precdoctor.checkpoints.checkpoint import CheckpointError

__all__ = ["CheckpointError", "diff"]
