"""Compare: one model and one data set in several number formats."""

from precdoctor.comparison.comparing import SAMPLES, compare, compare_evaluation
from precdoctor.comparison.formats import DEFAULT
from precdoctor.comparison.result import Comparison, Difference, FormatResult, Kept, Layer, Sensitivity

__all__ = [
    "DEFAULT",
    "SAMPLES",
    "Comparison",
    "Difference",
    "FormatResult",
    "Kept",
    "Layer",
    "Sensitivity",
    "compare",
    "compare_evaluation",
]
