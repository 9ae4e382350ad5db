"""What was seen of weights that were one parameter in two places, and are two tensors now."""

from __future__ import annotations

from dataclasses import dataclass

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """A parameter that was registered in two places at once, in one of which another tensor stands now.

    Judged where optimizer steps begin: what was tied again before the first of them is none.
    """

    #: qualified names: of the tensor where the parameter is, or was first, and of the one in the other place
    kept: str
    apart: str
    numel: int
    #: what stands apart: "parameter" or "buffer", its format, and the memory that it takes
    kind: str
    format: str
    extra_bytes: int
    #: the tensor apart has requires_grad
    trainable: bool = True
    #: how it came there: "assigned", "registered" (a buffer), "module replaced", "load_state_dict",
    #: "from_pretrained", "module.to"; empty where that was not seen
    how: str = ""
    #: the user's line that tied them, and the one that put another tensor there
    made: Place | None = None
    broken: Place | None = None
    #: correlation of the two over the watched elements at the first sight; None where either is constant
    similarity: float | None = None
    #: optimizer steps made before the first and the last sight of the two apart
    first_step: int = 0
    last_step: int = 0
    #: their distance at both, over the norm of the kept one
    distance_first: float = 0.0
    distance_last: float = 0.0
    #: how far each went in between, and how far their difference did, over the same norm
    kept_moved: float = 0.0
    apart_moved: float = 0.0
    difference_moved: float = 0.0
