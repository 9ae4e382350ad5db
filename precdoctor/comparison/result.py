"""What a comparison came to, as plain numbers. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

#: how a format was compared: what the others are measured against; the model cast and run in it; or
#: only the weights rounded to it, the arithmetic left in float32
Kind = Literal["reference", "computed", "weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A mean difference of losses to float32's, paired: sample by sample."""

    #: units of the loss, as all fields
    mean: float
    #: standard error of the mean; NaN of a single sample
    error: float
    #: 95 % confidence interval, by Student's t
    low: float
    high: float
    samples: int

    @property
    def is_significant(self) -> bool:
        """Tell whether the interval leaves out 0. Of too few samples it never does."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A module's output beside what it is in float32."""

    name: str
    #: decibels, over the samples looked at; inf where equal, NaN where a value is not finite
    sqnr_db: float
    #: the same where rounding alone acts; see `precdoctor.comparison.layers`
    expected_db: float
    #: decibels by which nine tenths of the errors stay further out than the twin's; the bulk, which no single
    #: large element decides. NaN where not known
    excess_db: float = math.nan
    #: the output is inf or NaN where float32's is finite
    overflows: bool = False
    #: largest magnitude in float32
    amax: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What it does to keep one layer, or several, in float32."""

    names: tuple[str, ...]
    #: of the loss to float32's, all other layers in the format
    difference: Difference
    #: bytes that it costs, against the format; of a cast model, of its weights
    extra_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Which layers the format costs most in, tried one by one."""

    #: all layers in the format, over the same samples
    before: Difference
    #: each alone, that which leaves the smallest difference first
    alone: tuple[Kept, ...]
    #: those that are worth keeping, together; None where none is
    together: Kept | None
    #: layers that there are
    layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatResult:
    """One model in one format."""

    name: str
    kind: Kind
    #: the format in full, with block and scale: "int8:channel"
    stored: str
    #: of each sample, in order
    losses: tuple[float, ...]
    loss: float
    #: standard error of the mean over samples
    loss_error: float
    #: to float32's; None for float32 itself
    difference: Difference | None
    #: bytes of weights and buffers that the model takes in the format; of weights formats, packed
    held_bytes: int
    #: bytes of what a forward pass of one batch makes, at its peak; None where it is float32's
    working_bytes: int | None
    #: median over batches; None where the arithmetic is float32's
    seconds_per_sample: float | None
    #: median over batches of this time over float32's in the same round
    time_ratio: float | None
    #: share of predictions (largest output) that differ from float32's; None where there are none
    changed_share: float | None
    predictions: int
    #: in the order in which they run; without float32
    layers: tuple[Layer, ...] = ()
    #: the first layer that departs further than rounding explains
    departs: Layer | None = None
    sensitivity: Sensitivity | None = None
    #: what is worth knowing
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One model and one data set in several formats."""

    #: what was evaluated, as it was called
    name: str
    samples: int
    #: what a sample is: "sample", or "batch" where batches can't be cut
    unit: str
    #: samples for which layers were looked at
    layer_samples: int
    #: elements of parameters and buffers, each once, and those that weights formats quantize
    elements: int
    quantized_elements: int
    #: of the weights as they came
    came_in: tuple[str, ...]
    formats: tuple[FormatResult, ...]
    #: one sentence per format, and the last what follows
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    torch: str
    device: str
    threads: int
    #: of the whole comparison
    seconds: float

    @property
    def reference(self) -> FormatResult:
        """Return the figures of float32."""
        return self.formats[0]

    def __str__(self) -> str:
        """Return the report for a terminal."""
        from precdoctor.comparison import text

        return text.render(self)
