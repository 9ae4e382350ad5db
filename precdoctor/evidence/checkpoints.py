"""What was seen of weights and state that a checkpoint holds in a coarser format than the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What lost digits on the way to, or from, a checkpoint; by the line that did it."""

    #: trained weights, or the state of an optimizer, of one key; "rounded": weights loaded again and
    #: again with their own values, rounded, that had moved in between
    kind: Literal["saved", "loaded", "state", "loaded state", "rounded"]
    #: format of the weights, and that in the checkpoint
    trained: str
    format: str
    #: the line that saved or loaded, and the one that cast, where that is known
    place: Place | None = None
    cast: Place | None = None
    #: times, and optimizer steps made before the first and the last
    times: int = 0
    first_step: int = 0
    last_step: int = 0
    #: names of the weights in the checkpoint, or the key of the state, and number of their elements
    parameters: tuple[str, ...] = ()
    numel: int = 0
    #: optimizer state was saved, or loaded, with them: training is to go on from here
    with_optimizer: bool = False
    #: the full weights were saved as well
    with_full: bool = False
    #: the line that loaded them into weights which this process then trained on
    loaded_back: Place | None = None
    #: of rounded weights: the line that saved them, and loads of something else in between
    saved: Place | None = None
    others: int = 0
    #: of the elements looked at: share that rounding changed (of a state: made 0 or inf, of those not
    #: 0; of rounded weights: that had moved and were put back), and its size (rms) relative to the weights
    #: (of rounded weights: of all movement that was lost)
    changed_share: float = 0.0
    relative_error: float = 0.0
    #: of rounded weights: EDQ of what they moved in a few rounds together, in the median; and the share of
    #: what rounding cut off that was there again the next time (upper end of its 95 % interval): 1 where a
    #: finer copy is kept, None where that can't be told
    edq: float | None = None
    regained: float | None = None
