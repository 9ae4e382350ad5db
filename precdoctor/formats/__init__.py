"""Number formats as data, of elements and of blocks, and their arithmetic without torch."""

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
from precdoctor.formats.block import BLOCK_FORMATS, E8M0, BlockFormat, Grid, block_format
from precdoctor.formats.codebook import Codebook
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
    "BLOCK_FORMATS",
    "E2M1",
    "E4M3FN",
    "E5M2",
    "E8M0",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "FORMATS",
    "TF32",
    "BlockFormat",
    "Codebook",
    "Format",
    "FormatError",
    "Grid",
    "Tie",
    "block_format",
    "by_name",
    "half_ulp",
    "headroom_bits",
    "next_down",
    "next_up",
    "round_stochastic",
    "round_to",
    "ulp",
]
