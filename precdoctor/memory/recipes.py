"""Recipes as data: in which formats a training run keeps what it keeps. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from precdoctor.formats import BFLOAT16, FLOAT32, BlockFormat, Format, block_format
from precdoctor.formats.block import INT8

#: how the forward pass computes; each has its own activations
Compute = Literal["float32", "bfloat16", "autocast", "packed"]

#: elements that share a scale in 8-bit optimizer state, as in torchao's AdamW8bit
STATE_BLOCK = 256
#: codes of 8-bit optimizer state
STATE_FORMAT: BlockFormat = replace(INT8[0], name=f"int8:{STATE_BLOCK}", block=STATE_BLOCK, flat=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is kept of a parameter between two steps, and how the forward pass computes. AdamW steps all."""

    name: str
    #: in a line
    what: str
    compute: Compute
    #: of the parameters that the model holds, and of their gradients
    weight: Format
    #: AdamW's two moments
    state: Format | BlockFormat
    #: float32 weights beside those of the model, or of the products
    master: Format | None = None
    #: what rounding lost, kept for the next step
    compensation: Format | None = None
    #: what products read instead of the weight; the model then holds the weight as a master
    products: BlockFormat | None = None


def _fp4(name: str) -> Recipe:
    return Recipe(
        name=f"fp4-{name}",
        what=f"weights of linear layers in {name} for the products, float32 latent weights behind them",
        compute="packed",
        weight=FLOAT32,
        state=FLOAT32,
        products=block_format(name),
    )


RECIPES: tuple[Recipe, ...] = (
    Recipe(name="fp32", what="all in float32", compute="float32", weight=FLOAT32, state=FLOAT32),
    Recipe(
        name="amp",
        what="float32 weights, the forward pass under torch.autocast in bfloat16",
        compute="autocast",
        weight=FLOAT32,
        state=FLOAT32,
    ),
    Recipe(
        name="bf16",
        what="all in bfloat16, the optimizer state too: small updates are lost",
        compute="bfloat16",
        weight=BFLOAT16,
        state=BFLOAT16,
    ),
    Recipe(
        name="bf16-master",
        what="bfloat16 weights, copies of float32 masters (precdoctor.remedies.MasterWeights)",
        compute="bfloat16",
        weight=BFLOAT16,
        state=FLOAT32,
        master=FLOAT32,
    ),
    Recipe(
        name="bf16-kahan",
        what="bfloat16 weights and what rounding lost of them (precdoctor.remedies.KahanSummation)",
        compute="bfloat16",
        weight=BFLOAT16,
        state=FLOAT32,
        compensation=BFLOAT16,
    ),
    Recipe(
        name="bf16-sr",
        what="bfloat16 weights, rounded stochastically (precdoctor.remedies.StochasticRounding)",
        compute="bfloat16",
        weight=BFLOAT16,
        state=FLOAT32,
    ),
    Recipe(
        name="8bit-adam",
        what=f"float32 weights, both moments in 8 bits with a float32 scale per {STATE_BLOCK}",
        compute="float32",
        weight=FLOAT32,
        state=STATE_FORMAT,
    ),
    *map(_fp4, ("mxfp4", "nvfp4", "nf4", "bnb-fp4")),
)


def recipe(name: str) -> Recipe:
    """Return the recipe of that name; raises LookupError, which lists the names there are."""
    for one in RECIPES:
        if one.name == name:
            return one
    raise LookupError(f"no recipe {name!r}; there are {', '.join(one.name for one in RECIPES)}")
