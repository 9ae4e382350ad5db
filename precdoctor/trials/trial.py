"""A trial: the same program run once more with one thing changed from outside, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["cured", "helped", "no effect", "harmed", "does not apply"]
#: from best to worst
OUTCOMES: tuple[Outcome, ...] = ("cured", "helped", "no effect", "harmed", "does not apply")
#: names of the two runs that every cure is compared with
UNTREATED, FLOAT32 = "untreated", "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of the program and what it showed of the parameters that were ill."""

    #: id of the remedy, such as "autocast"; "untreated" and "float32" for the two runs of comparison
    remedy: str
    #: the remedy with its dose, such as "group-lr x10"; unique among the trials of a program
    label: str
    #: the dose, such as {"factor": 10.0}
    settings: dict[str, float | str] = field(default_factory=dict)
    #: ids of the rules whose findings asked for it
    rules: tuple[str, ...] = ()
    #: the parameters by which it is judged: those that were ill
    subjects: tuple[str, ...] = ()
    #: None for the runs of comparison
    outcome: Outcome | None = None
    #: why that outcome, in a sentence with its numbers
    why: str = ""
    #: last line of the program's traceback, where it failed
    error: str = ""
    #: optimizer steps made
    steps: int = 0
    #: rules (errors and warnings) that found something in this run
    found: tuple[str, ...] = ()
    #: effective descent quality of the subjects, pooled: 1 = descent as meant, 0 = frozen; None: not measured
    edq: float | None = None
    #: share of the subjects' intended updates that left the element unchanged
    lost_share: float | None = None
    #: stored increases and decreases of the subjects
    ups: int = 0
    downs: int = 0
    #: mean over the subjects' watched elements, at the first and at the last observation
    mean_first: float | None = None
    mean_last: float | None = None
    #: <travel, float32 travel> / <float32 travel, float32 travel> of the subjects' sampled elements: 1 = as
    #: far as in float32 in its direction; and |travel - float32 travel| / |float32 travel|: 0 = the same, 1 =
    #: as far off as a weight that never moved
    travel_share: float | None = None
    travel_distance: float | None = None
    #: mean loss over the first and the last quarter of the steps
    loss_first: float | None = None
    loss_last: float | None = None
    #: mean over the last quarter of (this loss - the untreated one) at the same step, and its standard error
    loss_difference: float | None = None
    loss_difference_error: float | None = None
    #: median time of a step in seconds, without what observing took; and over that of the untreated run
    step_seconds: float | None = None
    step_time_ratio: float | None = None
    #: bytes per parameter that weights, gradients, optimizer state and the remedy's own buffers held after a
    #: step, measured; and what the remedy's page says it should be
    bytes_per_parameter: float | None = None
    bytes_per_parameter_estimated: float | None = None
    #: (step, loss) at the recorded backward passes
    losses: tuple[tuple[int, float], ...] = ()
    #: wall time of the whole run, seconds
    seconds: float = 0.0
