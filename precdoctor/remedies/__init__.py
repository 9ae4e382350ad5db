"""Remedies: what each one does, what it costs, and how it is tried on a program from outside.

The optimizer wrappers among them are for use in programs; naming one of them loads torch.
"""

from __future__ import annotations

import importlib
import typing

from precdoctor.remedies.catalogue import REMEDIES
from precdoctor.remedies.remedy import Dose, Remedy

if typing.TYPE_CHECKING:
    from precdoctor.remedies.wrappers import Float32State, KahanSummation, MasterWeights, StochasticRounding

__all__ = [
    "REMEDIES",
    "Dose",
    "Float32State",
    "KahanSummation",
    "MasterWeights",
    "Remedy",
    "StochasticRounding",
]

_WRAPPERS = ("Float32State", "KahanSummation", "MasterWeights", "StochasticRounding")


def __getattr__(name: str) -> object:
    if name in _WRAPPERS:
        return getattr(importlib.import_module("precdoctor.remedies.wrappers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
