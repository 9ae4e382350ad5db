"""The formats that a model is compared in: torch computes in some, weights are rounded to others."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from precdoctor.evaluation import EvaluationError
from precdoctor.formats import BLOCK_FORMATS, BlockFormat, block_format

#: what a model is compared with
REFERENCE = "float32"
DEFAULT = ("float32", "bfloat16", "float16", "e4m3fn", "int8", "nf4")

COMPUTED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: short names, and the block format that is meant: as inference libraries store weights
_SHORT = {
    "e4m3fn": "e4m3fn:tensor",
    "e5m2": "e5m2:tensor",
    "int8": "int8:channel",
    "int4": "int4:64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A format by the name that was asked for."""

    name: str
    #: what the whole model is cast to; None where only weights are rounded
    dtype: torch.dtype | None
    #: what weights are quantized to and back; None where the model is cast
    block: BlockFormat | None


def choose(names: tuple[str, ...]) -> tuple[Choice, ...]:
    """Return the formats of these names, float32 first; raises `EvaluationError` for unknown ones."""
    ordered = dict.fromkeys((REFERENCE, *names))
    return tuple(map(_choice, ordered))


def _choice(name: str) -> Choice:
    if name in COMPUTED:
        return Choice(name=name, dtype=COMPUTED[name], block=None)
    full = _SHORT.get(name, name)
    if any(fmt.name == full for fmt in BLOCK_FORMATS):
        return Choice(name=name, dtype=None, block=block_format(full))
    plain = [fmt.name for fmt in BLOCK_FORMATS if ":" not in fmt.name]
    known = ", ".join(dict.fromkeys((*COMPUTED, *_SHORT, *plain)))
    raise EvaluationError(
        f"no format {name!r} to compare in; there are {known}, and all of precdoctor formats"
    )
