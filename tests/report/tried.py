"""Made-up trials of cures for the run of `builders.ill`: every outcome, a long name, a hostile error."""

from __future__ import annotations

import dataclasses
import math
import random

from precdoctor.report import Report
from precdoctor.rules.finding import Prescription
from precdoctor.trials import Outcome, Trial
from tests.report.builders import ill, model

LONG = "float32-island on decoder.layers.11.feed_forward.experts.63.activation_and_normalisation"
ERROR = "RuntimeError: expected <script>alert('mat1')</script> and mat2 to have the same dtype, got float"


def trial(
    label: str,
    outcome: Outcome | None = None,
    why: str = "",
    *,
    remedy: str = "",
    floor: float = 1.9,
    rate: float = 0.06,
    noise: float = 0.06,
    steps: int = 50,
    **more: object,
) -> Trial:
    """Return a trial whose loss falls to ``floor``, judged by the norms of `model`."""
    draw = random.Random(label)
    losses = tuple(
        (step, floor + (4.6 - floor) * math.exp(-rate * step) + draw.gauss(0, noise)) for step in range(steps)
    )
    last = [loss for _, loss in losses[-steps // 4 :]]
    known: dict[str, object] = {
        "remedy": remedy or label.split()[0],
        "rules": ("PD101",) if outcome is not None else (),
        "subjects": tuple(p.name for p in model() if "norm" in p.name),
        "steps": steps,
        "loss_first": 4.1,
        "loss_last": sum(last) / len(last) if last else None,
        "step_seconds": 0.021,
        "step_time_ratio": 1.0,
        "bytes_per_parameter": 8.0,
        "losses": losses,
        "seconds": 6.1,
    }
    return Trial(**{**known, "label": label, "outcome": outcome, "why": why, **more})  # type: ignore[arg-type]


def trials() -> tuple[Trial, ...]:
    """Return the two runs of comparison and ten cures with every outcome, in the order of the catalogue."""
    near = {"loss_difference": -0.312, "loss_difference_error": 0.004}
    like_float32 = {"edq": 0.998, "lost_share": 0.001, "travel_share": 0.98, "travel_distance": 0.12, **near}
    return (
        trial("untreated", floor=2.2, edq=0.0, lost_share=1.0, travel_share=0.0, travel_distance=1.0),
        trial(
            "float32",
            edq=1.0,
            travel_share=1.0,
            travel_distance=0.0,
            bytes_per_parameter=16.0,
            step_time_ratio=1.31,
            **near,
        ),
        trial(
            "autocast",
            "cured",
            "EDQ 0.000 -> 0.998; travel 0.98 of float32's, 0.12 off.",
            step_time_ratio=1.42,
            bytes_per_parameter=16.0,
            **like_float32,
        ),
        trial(
            "master-weights",
            "cured",
            "EDQ 0.000 -> 0.998; travel 0.98 of float32's, 0.14 off.",
            step_time_ratio=1.18,
            bytes_per_parameter=12.0,
            **{**like_float32, "travel_distance": 0.14},
        ),
        trial(
            "stochastic-rounding",
            "cured",
            "EDQ 0.000 -> 0.97 (net); noise 0.61 off float32's travel.",
            step_time_ratio=1.25,
            **{**like_float32, "edq": 0.97, "travel_distance": 0.61},
        ),
        trial(
            "kahan",
            "cured",
            "EDQ 0.000 -> 1.02 (net); travel 0.99 of float32's, 0.21 off.",
            step_time_ratio=1.11,
            bytes_per_parameter=10.0,
            **{**like_float32, "edq": 1.02, "travel_distance": 0.21},
        ),
        trial(
            "group-lr x22.6",
            "helped",
            "EDQ 0.000 -> 0.91, but the weights travel 21 times as far as in float32.",
            settings={"factor": 22.6},
            floor=2.0,
            edq=0.91,
            lost_share=0.3,
            travel_share=21.0,
            travel_distance=20.4,
            loss_difference=-0.11,
            loss_difference_error=0.02,
        ),
        trial(
            "group-lr x10",
            "no effect",
            "EDQ 0.000 -> 0.04; 28 ups against 129 downs; mean 0.9938 where float32 goes to 1.0015.",
            settings={"factor": 10.0},
            floor=2.19,
            edq=0.04,
            lost_share=0.98,
            ups=28,
            downs=129,
            travel_share=-0.4,
            travel_distance=1.7,
            loss_difference=0.001,
            loss_difference_error=0.003,
        ),
        trial(
            "reinit x0.1",
            "harmed",
            "loss 0.9 ± 0.05 above the untreated run's; 99 % of the updates are lost.",
            settings={"factor": 0.1},
            floor=3.1,
            noise=0.3,
            edq=0.05,
            lost_share=0.99,
            travel_share=0.1,
            travel_distance=0.9,
            loss_difference=0.9,
            loss_difference_error=0.05,
        ),
        trial(
            "eps 1e-05",
            "harmed",
            "the loss is not finite from step 21.",
            settings={"eps": 1e-5},
            edq=None,
            loss_last=math.nan,
            loss_difference=math.nan,
            losses=(
                *((step, 4.6 - 0.02 * step) for step in range(21)),
                *((step, math.nan) for step in range(21, 50)),
            ),
        ),
        trial(
            LONG,
            "no effect",
            "it acts on no weight.",
            remedy="float32-island",
            floor=2.2,
            edq=0.0,
            travel_share=0.0,
            travel_distance=1.0,
            loss_difference=0.0,
            loss_difference_error=0.0,
        ),
        trial(
            "loss-scaling",
            "does not apply",
            "the script failed at step 1.",
            error=ERROR,
            steps=0,
            losses=(),
            loss_first=None,
            loss_last=None,
            step_seconds=None,
            step_time_ratio=None,
            bytes_per_parameter=None,
        ),
    )


def treated() -> Report:
    """Return the report of `ill` with more cures prescribed, and all but three of them tried."""
    report = ill()
    finding = report.findings[0]
    more = tuple(
        Prescription(remedy=remedy, rank=rank, why=why)
        for rank, (remedy, why) in enumerate(
            (
                ("group-lr", "The updates would have to be 22.6x larger: not a cure by itself."),
                ("reinit", "The weights would have to be 22.6x smaller, which changes the model."),
                ("float32-state", "Keep the moments in float32."),
                ("reconnect", "Use the parameter itself."),
                ("loss-scaling", "Lift the gradients out of the subnormals."),
            ),
            start=4,
        )
    )
    frozen_norms = dataclasses.replace(finding, prescriptions=(*finding.prescriptions, *more))
    diagnosis = dataclasses.replace(report.diagnosis, findings=(frozen_norms, *report.findings[1:]))
    return Report(report.evidence, diagnosis, trials())
