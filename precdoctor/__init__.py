"""precdoctor finds out why a PyTorch training run does not learn when the reason is numerical precision.

Importing it imports no torch: the public names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from precdoctor.checkpoints import diff
    from precdoctor.comparison import compare
    from precdoctor.doctor import Doctor
    from precdoctor.report import Report
    from precdoctor.rules import diagnose

    __version__: str

__all__ = ["Doctor", "Report", "__version__", "compare", "diagnose", "diff"]

_HOMES = {
    "Doctor": "precdoctor.doctor",
    "Report": "precdoctor.report",
    "compare": "precdoctor.comparison",
    "diagnose": "precdoctor.rules",
    "diff": "precdoctor.checkpoints",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("precdoctor")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
