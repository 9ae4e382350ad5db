"""What was seen beside float64, made by hand."""

from __future__ import annotations

from typing import Any

from precdoctor.evidence import Cancellation, Evidence, Exactness, NonFinite, Place
from tests.rules.build import evidence, parameter

AT, SOURCE, LATER = (
    Place(file="train.py", line=14, function="forward"),
    Place(file="train.py", line=9, function="forward"),
    Place(file="train.py", line=20, function="forward"),
)
PASSES = 20


def non_finite(**changes: Any) -> NonFinite:
    """Return squares of activations that overflow, of which nothing is known to have come."""
    values: dict[str, Any] = {
        "kind": "overflow",
        "place": AT,
        "function": "forward",
        "modules": ("norm",),
        "operation": "mul",
        "format": "float16",
        "passes": PASSES,
        "reduction": True,
        "largest": 3.8e5,
        "share": 0.08,
    }
    return NonFinite(**{**values, **changes})


def cancellation(**changes: Any) -> Cancellation:
    """Return a difference that has lost its digits, of which nothing is known to have come."""
    values: dict[str, Any] = {
        "place": AT,
        "cause": SOURCE,
        "function": "variance",
        "operation": "sub",
        "format": "float32",
        "passes": PASSES,
        "source": "mul",
        "source_format": "float32",
        "error_before": 1e-7,
        "error": 3.0,
        "error_first": 3.0,
        "share": 0.9,
        "remaining": 1e-8,
        "reached_at": LATER,
        "reached_error": 0.9,
    }
    return Cancellation(**{**values, **changes})


def run(*, losses: tuple[float, ...] = (1.0,) * 10, **seen: Any) -> Evidence:
    """Return the evidence of a run of so many losses in which this was seen."""
    exactness = Exactness(**{"passes": PASSES, "operations": 1000, "loss_format": "float32", **seen})
    return evidence(parameter(), exactness=exactness, losses=tuple(enumerate(losses)))
