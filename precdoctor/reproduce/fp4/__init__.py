"""The FP4 case: a language model with 4-bit weights that never learns, and why."""

from precdoctor.reproduce.fp4.case import SCENARIO

__all__ = ["SCENARIO"]
