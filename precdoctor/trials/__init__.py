"""Trials: what a cure did when it was tried, and how that is judged. Imports no torch."""

from precdoctor.trials.outcome import judge, judged_by, measure
from precdoctor.trials.trial import FLOAT32, OUTCOMES, UNTREATED, Outcome, Trial

__all__ = ["FLOAT32", "OUTCOMES", "UNTREATED", "Outcome", "Trial", "judge", "judged_by", "measure"]
