"""The order case: quantized before, while or after fine-tuning, and what size does; start at `case`."""

from precdoctor.reproduce.order.case import SCENARIO

__all__ = ["SCENARIO"]
