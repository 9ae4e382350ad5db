"""Tables of the block formats: all of them with what they make of a normal tensor, and one in detail."""

from __future__ import annotations

import math
from typing import NamedTuple

from precdoctor.formats.block import BLOCK_FORMATS, BlockFormat, block_format
from precdoctor.formats.text import number, table

BLOCK_COLUMNS = ("format", "elements", "block", "scale", "bits", "SQNR dB", "largest step")

#: the tensor that the figures are about: like a weight matrix at its initialisation
SHAPE = (64, 384)
STD = 0.02


class Fidelity(NamedTuple):
    """What a round trip leaves of a tensor of normal numbers."""

    #: decibels
    sqnr_db: float
    #: in units of the tensor
    mean_absolute_error: float
    #: share of the elements that come back as 0
    flushed_share: float


def block_table() -> str:
    """Return the table of all block formats."""
    rows = [
        (
            fmt.name,
            fmt.codebook.name,
            str(fmt.block),
            _scale(fmt),
            number(fmt.bits_per_element(SHAPE), 4),
            f"{fidelity(fmt).sqnr_db:.1f}",
            f"{fmt.codebook.largest_step / _reach(fmt):.1%}",
        )
        for fmt in BLOCK_FORMATS
    ]
    notes = (
        f"bits per element, scales included, and SQNR: of {_tensor()}",
        "largest step: between neighbouring values, as a share of what the scale maps onto the last code",
    )
    return "\n".join((table(rows, BLOCK_COLUMNS), "", *notes))


def describe_block(name: str) -> str:
    """Return one block format in detail; raises `FormatError` for a name that is not in the catalogue."""
    fmt = block_format(name)
    kept = fidelity(fmt)
    error = number(kept.mean_absolute_error, 4)
    facts = [
        ("elements", f"{fmt.codebook.name}: {_values(fmt)}; beyond the last, they saturate"),
        ("block", _block(fmt)),
        ("scale", f"{fmt.scale.name}, {_rule(fmt)}"),
        ("bits", f"{number(fmt.bits_per_element(SHAPE), 4)} per element of {_tensor()}, scales included"),
        ("SQNR", f"{kept.sqnr_db:.1f} dB on that tensor"),
        ("error", f"{error} in the mean of absolute values, {kept.mean_absolute_error / STD:.1%} of the std"),
        ("flushed", f"{kept.flushed_share:.1%} of the elements come back as 0"),
        ("not finite", f"one such element, and {_reached(fmt)} comes back as NaN"),
    ]
    if fmt.has_tensor_scale:
        facts.insert(3, ("tensor scale", "float32, by which the largest block gets the largest scale"))
    if fmt.affine:
        facts.insert(3, ("zero point", "the element value that stands for 0, one per block"))
    return f"{fmt.name}\n\n{table(facts)}"


def fidelity(fmt: BlockFormat) -> Fidelity:
    """Return what the format leaves of a tensor of `SHAPE` from N(0, `STD`), always the same one."""
    import numpy as np

    from precdoctor.formats.arrays import fake_quantize

    x = np.random.default_rng(0).normal(0, STD, SHAPE)
    error = x - fake_quantize(x, fmt)
    return Fidelity(
        sqnr_db=10 * math.log10((x**2).sum() / (error**2).sum()),
        mean_absolute_error=float(np.abs(error).mean()),
        flushed_share=float((error == x).mean()),
    )


def _tensor() -> str:
    return f"a {SHAPE[0]} x {SHAPE[1]} tensor of N(0, {STD})"


def _reach(fmt: BlockFormat) -> float:
    return fmt.codebook.span if fmt.affine else fmt.codebook.max


def _reached(fmt: BlockFormat) -> str:
    return "the whole tensor" if fmt.has_tensor_scale or fmt.block == "tensor" else "its whole block"


def _scale(fmt: BlockFormat) -> str:
    extra = " and tensor" if fmt.has_tensor_scale else " and zero" if fmt.affine else ""
    return f"{fmt.scale.name} {fmt.rule}{extra}"


def _values(fmt: BlockFormat) -> str:
    values = fmt.codebook.values
    if len(values) > 16:
        return f"{len(values)} values from {number(values[0], 4)} to {number(values[-1], 4)}"
    if values == tuple(-value for value in reversed(values)):
        return "0, ±" + ", ±".join(number(value, 4) for value in values[fmt.codebook.zero + 1 :])
    return ", ".join(number(value, 4) for value in values)


def _block(fmt: BlockFormat) -> str:
    if fmt.block == "tensor":
        return "the whole tensor"
    if fmt.block == "channel":
        return "a channel: all elements with the same first index"
    where = "in memory, over the ends of rows" if fmt.flat else "in the last dimension"
    return f"{fmt.block} neighbours {where}"


def _rule(fmt: BlockFormat) -> str:
    largest = number(fmt.codebook.max, 4)
    if fmt.rule == "floor":
        power = math.frexp(fmt.codebook.max)[1] - 1
        return f"2^(floor(log2 amax) - {power}): amax lands between {2**power} and {2 ** (power + 1)}"
    if fmt.rule == "ceil":
        half = number(fmt.codebook.max / 2, 4)
        return f"2^ceil(log2(amax / {largest})): amax lands between {half} and {largest}"
    if fmt.affine:
        return f"(max - min) / {number(fmt.codebook.span, 4)}, 0 counting as one of them"
    return "amax itself" if fmt.codebook.max == 1 else f"amax / {largest}"
