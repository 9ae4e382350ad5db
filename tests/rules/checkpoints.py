"""Evidence of checkpoints made by hand: a healthy bfloat16 pair by default."""

from __future__ import annotations

import dataclasses
from typing import Any

from precdoctor.evidence import (
    CheckpointFile,
    Contents,
    Evidence,
    Histogram,
    Prognosis,
    Run,
    Stored,
    Tensor,
    Travel,
)


def stored(**changes: Any) -> Stored:
    """Return what a bfloat16 matrix of std 0.02 is like."""
    values: dict[str, Any] = {"format": "bfloat16", "shape": (64, 64), "nbytes": 8192, "largest": 0.08}
    return Stored(**{**values, **changes})


def travel(**changes: Any) -> Travel:
    """Return the way of a matrix whose elements moved by 0.005."""
    values: dict[str, Any] = {
        "format": "bfloat16",
        "compared": 4096,
        "identical": 400,
        "ulps_max": 300.0,
        "sampled": 3696,
        "ulps_median": 20.0,
        "typical": 0.005,
        "half_ulp_passed": 0.0002,
        "half_ulp_low": 4e-6,
        "half_ulp_median": 6e-5,
    }
    return Travel(**{**values, **changes})


def moved(name: str = "up.weight", **changes: Any) -> Tensor:
    """Return a weight that moved."""
    values: dict[str, Any] = {
        "name": name,
        "kind": "parameter",
        "first": stored(),
        "second": stored(),
        "travel": travel(),
        "identical": False,
    }
    return Tensor(**{**values, **changes})


def norm(name: str = "norm.weight", **changes: Any) -> Tensor:
    """Return a weight of ones that did not move."""
    ones = stored(shape=(64,), nbytes=128, largest=1.0, constant=1.0, ones=64)
    half = {"half_ulp_low": 2.0**-9, "half_ulp_median": 2.0**-9, "half_ulp_passed": 0.0}
    still = travel(compared=64, identical=64, ulps_max=0.0, sampled=0, ulps_median=0.0, typical=0.0, **half)
    values: dict[str, Any] = {"first": ones, "second": ones, "travel": still, "identical": True}
    return moved(name, **{**values, **changes})


def still(name: str = "frozen.weight", **changes: Any) -> Tensor:
    """Return a matrix that did not move, though it has small elements."""
    same = travel(identical=4096, ulps_max=0.0, sampled=0, ulps_median=0.0, typical=0.0, half_ulp_passed=0.0)
    return moved(name, **{"travel": same, "identical": True, **changes})


def prognosis(**changes: Any) -> Prognosis:
    """Return an update that bfloat16 loses: 4.7 bits short."""
    values: dict[str, Any] = {
        "format": "bfloat16",
        "watched": 4096,
        "intended": 4096,
        "lost_share": 0.995,
        "edq": 0.01,
        "headroom_bits": Histogram(low=-5.0, width=0.5, counts=(4096.0,)),
        "weight": 0.02,
        "update": 3e-6,
        "stored": True,
    }
    return Prognosis(**{**values, **changes})


def evidence(*tensors: Tensor, files: int = 2, optimizers: tuple[str, ...] = (), **changes: Any) -> Evidence:
    """Return evidence of checkpoints."""
    named = ("first.pt", "last.pt")[:files]
    told = tuple(CheckpointFile(path=n, kind="torch", tensors=len(tensors), nbytes=1000) for n in named)
    told = (*told[:-1], dataclasses.replace(told[-1], optimizers=optimizers))
    return Evidence(
        run=Run(target="diff", argv=named, ended="finished"),
        contents=Contents(files=told, tensors=tensors, **changes),
    )


def alone(tensor: Tensor, **changes: Any) -> Tensor:
    """Return the same tensor as one file shows it."""
    return dataclasses.replace(tensor, second=None, travel=None, identical=None, **changes)
