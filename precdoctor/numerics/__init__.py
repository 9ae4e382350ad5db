"""The arithmetic of `precdoctor.formats` on tensors, and what it costs: EDQ, SQNR, binade
histograms; block formats: quantization, dead zones.

Nothing here waits for a device: no value is read back, results are tensors.
"""

from precdoctor.numerics.binades import BINADE_BINS, LOWEST_BINADE, binade_index, binades
from precdoctor.numerics.quality import edq, sqnr_db
from precdoctor.numerics.quantize import (
    Quantized,
    Scales,
    dequantize,
    fake_quantize,
    flip_distance,
    flushed_share,
    quantize,
    quantize_stochastic,
    quantum,
    saturated_share,
    scales_of,
)
from precdoctor.numerics.rounding import round_stochastic, round_to
from precdoctor.numerics.spacing import format_of, half_ulp, headroom_bits, ulp

__all__ = [
    "BINADE_BINS",
    "LOWEST_BINADE",
    "Quantized",
    "Scales",
    "binade_index",
    "binades",
    "dequantize",
    "edq",
    "fake_quantize",
    "flip_distance",
    "flushed_share",
    "format_of",
    "half_ulp",
    "headroom_bits",
    "quantize",
    "quantize_stochastic",
    "quantum",
    "round_stochastic",
    "round_to",
    "saturated_share",
    "scales_of",
    "sqnr_db",
    "ulp",
]
