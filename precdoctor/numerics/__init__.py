"""The arithmetic of `precdoctor.formats` on tensors, and what it costs: EDQ, SQNR, binade histograms.

Nothing here waits for a device: no value is read back, results are tensors.
"""

from precdoctor.numerics.binades import BINADE_BINS, LOWEST_BINADE, binade_index, binades
from precdoctor.numerics.quality import edq, sqnr_db
from precdoctor.numerics.rounding import round_stochastic, round_to
from precdoctor.numerics.spacing import format_of, half_ulp, headroom_bits, ulp

__all__ = [
    "BINADE_BINS",
    "LOWEST_BINADE",
    "binade_index",
    "binades",
    "edq",
    "format_of",
    "half_ulp",
    "headroom_bits",
    "round_stochastic",
    "round_to",
    "sqnr_db",
    "ulp",
]
