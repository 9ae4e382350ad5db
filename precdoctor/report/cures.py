"""The cures of a finding with what they did when tried, best first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from precdoctor.report.report import Report
from precdoctor.rules.finding import Finding, Prescription
from precdoctor.rules.wording import several
from precdoctor.trials import OUTCOMES, Outcome, Trial
from precdoctor.trials.trial import FLOAT32, UNTREATED

#: the remedies that can be tried from outside the program (those of `precdoctor.remedies`); all others are
#: edits by hand
TREATABLE = frozenset(
    (
        "autocast", "master-weights", "stochastic-rounding", "kahan", "float32-state", "float32-island",
        "group-lr", "reinit", "eps", "beta2", "loss-scaling", "plain-optimizer",
        "ste", "refresh-cache", "float32-latent", "block-scale", "stochastic-gradients",
        "keep-float32", "re-tie",
    )
)  # fmt: skip

#: the tried outcome, or why there is none
Status = Literal[Outcome, "not tried yet", "not tried", "by hand"]

#: those that `precdoctor fix` can write
EDITABLE = frozenset(
    (
        "autocast", "master-weights", "stochastic-rounding", "kahan", "float32-state", "group-lr", "reinit",
        "eps", "beta2", "plain-optimizer",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Cure:
    """A prescription, its place among the others, and its best trial."""

    prescription: Prescription
    #: 1 = best
    rank: int
    trial: Trial | None
    status: Status

    @property
    def label(self) -> str:
        """Return the remedy with the dose that was tried."""
        return self.prescription.remedy if self.trial is None else self.trial.label


def cures(finding: Finding, trials: Sequence[Trial]) -> tuple[Cure, ...]:
    """Return the cures of the finding, best first.

    First those that cured, then those that helped, then those not tried (in the rule's order: they may yet
    cure), then those that had no effect, harmed or did not apply.
    """
    paired = [(cure, _best(finding, cure, trials)) for cure in finding.prescriptions]
    paired.sort(key=lambda pair: (*_merit(pair[1]), pair[0].rank))
    return tuple(
        Cure(prescription=cure, rank=rank, trial=trial, status=_status(cure, trial, trials))
        for rank, (cure, trial) in enumerate(paired, start=1)
    )


def tried(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials of cures, best first; equals stay as they were."""
    return sorted((trial for trial in trials if trial.outcome is not None), key=_merit)


def compared_with(trials: Sequence[Trial]) -> list[Trial]:
    """Return the runs of comparison: untreated, then float32."""
    order = (UNTREATED, FLOAT32)
    return sorted((t for t in trials if t.remedy in order), key=lambda t: order.index(t.remedy))


def verdict(trials: Sequence[Trial]) -> str:
    """Return what came of the trials, in a sentence or two; empty without any."""
    ordered = tried(trials)
    if not ordered:
        return ""
    best = ordered[0]
    others = several([t.label for t in ordered[1:] if t.outcome == best.outcome], shown=4)
    why = f": {best.why.rstrip('.')}." if best.why else "."
    if best.outcome == "cured":
        return f"{best.label} cures it{why}" + (f" So do {others}." if " and " in others else _too(others))
    if best.outcome == "helped":
        return f"None of the {len(ordered)} cures that were tried heals it. {best.label} helps most{why}"
    return "The one cure that was tried did not help." if len(ordered) == 1 else (
        f"None of the {len(ordered)} cures that were tried helped."
    )  # fmt: skip


def reason(trial: Trial) -> str:
    """Return why the trial has its outcome, with the error where the program failed."""
    if not trial.error or trial.error in trial.why:
        return trial.why
    return f"{trial.why} ({trial.error})" if trial.why else trial.error


def can_be_tried(report: Report) -> bool:
    """Tell whether `precdoctor treat` would have something to try."""
    return any(cure.remedy in TREATABLE for finding in report.findings for cure in finding.prescriptions)


def _too(other: str) -> str:
    return f" So does {other}." if other else ""


def _best(finding: Finding, cure: Prescription, trials: Sequence[Trial]) -> Trial | None:
    names = {subject.name for subject in finding.subjects}
    of_it = (
        trial
        for trial in trials
        if trial.remedy == cure.remedy
        and finding.rule in trial.rules
        and (not trial.subjects or not names.isdisjoint(trial.subjects))
    )
    return min(of_it, key=_merit, default=None)


def _merit(trial: Trial | None) -> tuple[int, float, float]:
    """Return what trials are ordered by: the outcome, then how near float32's travel, then the loss.

    Both are coarse, so that noise does not decide between cures that did the same.
    """
    helped = OUTCOMES.index("helped")
    if trial is None or trial.outcome is None:
        return 2 * helped + 1, 0.0, 0.0
    return 2 * OUTCOMES.index(trial.outcome), _coarse(trial.travel_distance), _coarse(trial.loss_last)


def _coarse(value: float | None) -> float:
    """Return the value with two digits at most; what is not known is worse than anything."""
    return math.inf if value is None or not math.isfinite(value) else float(f"{round(value, 1):.2g}")


def _status(cure: Prescription, trial: Trial | None, trials: Sequence[Trial]) -> Status:
    if trial is not None and trial.outcome is not None:
        return trial.outcome
    if cure.remedy not in TREATABLE:
        return "by hand"
    return "not tried" if trials else "not tried yet"
