"""Evidence made by hand: a healthy bfloat16 run by default, each test makes it ill in one way."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from precdoctor.evidence import (
    Backward,
    Bench,
    Cast,
    Evidence,
    Example,
    Fidelity,
    Gradient,
    GradientQuantizer,
    Group,
    Histogram,
    Optimizer,
    Parameter,
    Place,
    Quantizer,
    Run,
    Updates,
    Weight,
    WindowedEdq,
)

CAST, LR, BUILT = (
    Place(file="train.py", line=10),
    Place(file="train.py", line=12),
    Place(file="model.py", line=3),
)

QUANTIZED = Place(file="layers.py", line=40)


def headroom(bits: float, weight: float = 1000.0, lr: float = 1.0) -> Histogram:
    """Return a histogram with everything in the half bit that holds ``bits``, those at that learning rate."""
    low = (bits // 0.5) * 0.5 - math.log2(lr)
    return Histogram(low=low, width=0.5, counts=(weight,))


def updates(**changes: Any) -> Updates:
    """Return the updates of a healthy parameter: 1.5 bits of headroom, all of the descent arrives."""
    edq = changes.pop("edq", 1.0)
    low, high = changes.pop("interval", (edq - 0.01, edq + 0.01))
    bits = changes.pop("bits", 1.5)
    values: dict[str, Any] = {
        "replay": "elementwise",
        "intended": 6400,
        "lost_share": 0.05,
        "edq": (WindowedEdq(window=1, edq=edq, low=low, high=high),),
        "headroom_bits": headroom(bits),
        "headroom_energy": headroom(bits),
        "headroom_per_lr": headroom(bits, lr=3e-4),
        "ups_intended": 3300,
        "downs_intended": 3100,
        "ups_applied": 3200,
        "downs_applied": 3000,
        "relative_rms": 1e-3,
    }
    return Updates(**{**values, **changes})


def lost(**changes: Any) -> Updates:
    """Return the updates of a norm scale at 1.0 in bfloat16 under lr 3e-4: all lost, 2.7 bits short."""
    values: dict[str, Any] = {
        "edq": 0.0,
        "interval": (0.0, 0.0),
        "lost_share": 1.0,
        "never_moved_share": 1.0,
        "bits": -2.7,
        "ups_applied": 0,
        "downs_applied": 0,
        "relative_rms": 2.9e-4,
        "example": Example(index=0, weight=1.0, intended=-2.9e-4, applied=0.0),
    }
    return updates(**{**values, **changes})


def weight(**changes: Any) -> Weight:
    """Return stored values that moved."""
    values: dict[str, Any] = {
        "abs_median": 0.1,
        "abs_min": 0.0,
        "abs_max": 0.3,
        "mean_first": 0.01,
        "mean_last": 0.02,
        "moved_share": 1.0,
        "power_of_two_share": 0.01,
    }
    return Weight(**{**values, **changes})


def parameter(name: str = "weight", **changes: Any) -> Parameter:
    """Return a healthy bfloat16 parameter of 64 elements in group 0 of optimizer 0."""
    values: dict[str, Any] = {
        "format": "bfloat16",
        "shape": (64,),
        "watched": 64,
        "module": "Linear",
        "used": True,
        "optimizer": 0,
        "group": 0,
        "created": BUILT,
        "cast": Cast(before="float32", after="bfloat16", how="module.to", place=CAST),
        "weight": weight(),
        "gradient": Gradient(format="bfloat16", present=100),
        "updates": updates(),
    }
    return Parameter(name=name, **{**values, **changes})


def norm(name: str = "norm.weight", **changes: Any) -> Parameter:
    """Return a norm scale frozen at 1.0."""
    at_one = weight(abs_median=1.0, mean_first=1.0, mean_last=1.0, moved_share=0.0, power_of_two_share=1.0)
    return parameter(name, **{"weight": at_one, "updates": lost(), **changes})


def bench(**changes: Any) -> Bench:
    """Return the bench test of a plain optimizer: small updates are lost, large ones are written."""
    values: dict[str, Any] = {"group": 0, "format": "bfloat16", "edq_small": 0.0, "edq_large": 1.0}
    return Bench(**{**values, "zero_gradient_finite": True, **changes})


def group(**changes: Any) -> Group:
    """Return a group at a constant lr of 3e-4."""
    values: dict[str, Any] = {"lr_first": 3e-4, "lr_last": 3e-4, "lr_max": 3e-4, "tensors": 2, "place": LR}
    return Group(**{**values, **changes})


def optimizer(**changes: Any) -> Optimizer:
    """Return an AdamW that made 100 steps, all observed."""
    values: dict[str, Any] = {
        "type": "torch.optim.adamw.AdamW",
        "steps": 100,
        "observed": 100,
        "groups": (group(),),
        "benches": (bench(),),
        "place": LR,
    }
    return Optimizer(**{**values, **changes})


def fidelity(**changes: Any) -> Fidelity:
    """Return what a 4-bit block format leaves of a weight after 30 steps: 19 dB, nothing clipped."""
    values = {"step": 30, "mean_absolute_error": 2e-3, "sqnr_db": 19.0, "clipped_share": 0.0}
    return Fidelity(**{**values, "flushed_share": 0.1, **changes})


def gradient_quantizer(**changes: Any) -> GradientQuantizer:
    """Return gradients of a loss over 1,024 classes, rounded to the nearest of few codes; healthy."""
    values: dict[str, Any] = {
        "place": Place(file="layers.py", line=60),
        "rounding": QUANTIZED,
        "function": "quantize",
        "shape": (4, 32, 1024),
        "format": "float32",
        "seen": 12,
        "projection": 0.99,
        "bias": 0.01,
        "sqnr_db": 19.0,
        "flushed_share": 0.1,
        "flushed_energy": 0.001,
    }
    return GradientQuantizer(**{**values, **changes})


def quantizer(name: str = "weight", **changes: Any) -> Quantizer:
    """Return a 4-bit quantizer of a weight of 4,096 elements whose estimator passes gradient."""
    values: dict[str, Any] = {
        "kind": "quantizer",
        "numel": 4096,
        "format": "float32",
        "route": "open",
        "place": QUANTIZED,
        "rounding": Place(file="quantizers.py", line=7),
        "used_at": QUANTIZED,
        "function": "quantize",
        "levels": 15,
        "seen": 5,
        "first": fidelity(step=0, mean_absolute_error=1.9e-3),
        "last": fidelity(),
        "weight_moved": 0.5,
        "used_moved": 0.5,
        "flips_per_step": 0.02,
        "changed_share": 0.4,
        "span_steps": 30,
        "gradient_density": 1.0,
        "used_density": 1.0,
        "gradient_cosine": 1.0,
    }
    return Quantizer(parameter=name, **{**values, **changes})


def evidence(*parameters: Parameter, **changes: Any) -> Evidence:
    """Return the evidence of a finished run; ``ended`` and ``optimizers`` are the usual changes."""
    run = Run(target="train.py", steps=100, observed=100, ended=changes.pop("ended", "finished"))
    names = tuple(p.name for p in parameters)
    values: dict[str, Any] = {
        "run": run,
        "parameters": parameters,
        "optimizers": (optimizer(),),
        "backward": Backward(place=Place(file="train.py", line=20), reaches=names),
    }
    return Evidence(**{**values, **changes})


def with_bench(given: Evidence, **changes: Any) -> Evidence:
    """Return evidence whose optimizer behaved differently on the bench."""
    changed = dataclasses.replace(given.optimizers[0], benches=(bench(**changes),))
    return dataclasses.replace(given, optimizers=(changed,))


def with_group(given: Evidence, **changes: Any) -> Evidence:
    """Return evidence whose optimizer's group has other settings."""
    changed = dataclasses.replace(given.optimizers[0], groups=(group(**changes),))
    return dataclasses.replace(given, optimizers=(changed,))
