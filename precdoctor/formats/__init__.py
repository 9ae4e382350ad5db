"""Number formats as data, and their arithmetic on Python floats. Imports no torch."""

from precdoctor.formats.arithmetic import (
    Tie,
    half_ulp,
    headroom_bits,
    next_down,
    next_up,
    round_stochastic,
    round_to,
    ulp,
)
from precdoctor.formats.format import (
    BFLOAT16,
    E2M1,
    E4M3FN,
    E5M2,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FORMATS,
    TF32,
    Format,
    FormatError,
    by_name,
)

__all__ = [
    "BFLOAT16",
    "E2M1",
    "E4M3FN",
    "E5M2",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "FORMATS",
    "TF32",
    "Format",
    "FormatError",
    "Tie",
    "by_name",
    "half_ulp",
    "headroom_bits",
    "next_down",
    "next_up",
    "round_stochastic",
    "round_to",
    "ulp",
]
