"""Optimizer wrappers that keep what a low format rounds away; each goes around any torch optimizer."""

from precdoctor.remedies.wrappers.float32_state import Float32State
from precdoctor.remedies.wrappers.float32_step import Float32Step
from precdoctor.remedies.wrappers.kahan_summation import KahanSummation
from precdoctor.remedies.wrappers.master_weights import MasterWeights
from precdoctor.remedies.wrappers.stochastic_rounding import StochasticRounding

__all__ = ["Float32State", "Float32Step", "KahanSummation", "MasterWeights", "StochasticRounding"]
