"""What was seen of weights that a forward pass uses in another form: rounded onto a grid, or cast."""

from __future__ import annotations

from dataclasses import dataclass

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """What the forward pass used of a weight, beside the weight, at one step; over the watched elements."""

    #: optimizer steps made before
    step: int
    #: mean of abs(used - weight), in units of the weight
    mean_absolute_error: float
    #: signal to quantization noise, decibels; None where the error is zero
    sqnr_db: float | None
    #: share of the weights beyond the largest magnitude that is used in their tensor or row
    clipped_share: float
    #: share of the weights, themselves not zero, that are used as zero
    flushed_share: float
    #: largest magnitude that is used over the largest of the weight; about 1 where the scale follows amax
    reach: float = 1.0
    #: correlation of used values and weight, which no scale and no offset changes
    correlation: float = 1.0
    #: used values that are not finite while the weight is
    non_finite: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """What lies between a weight and the operation that uses it: rounding onto a grid, or a cast."""

    #: qualified name of the parameter; of the buffer, where no parameter is left
    parameter: str
    #: "quantizer": values on a grid; "cast": the weight in a 16-bit format; "detached": the weight itself,
    #: without its history; "plain": the weight itself
    kind: str
    #: number of elements, and the format of the used values
    numel: int
    format: str
    #: how gradient gets from the used values to the weight: "open"; "cut": not at all; "zero derivative":
    #: only through operations whose derivative is zero; "scale only": only through tensors much smaller than
    #: the weight; "custom function": as a function of the user's own says; "buffer": there is no parameter
    route: str
    #: the user's line where the weight enters, that of the last rounding, and that of the use
    place: Place | None = None
    rounding: Place | None = None
    used_at: Place | None = None
    #: functions of the user between the weight and its use, the outer one first: "quantize_fp4"
    function: str = ""
    #: names of the graph's nodes of zero derivative on the way
    zero_nodes: tuple[str, ...] = ()
    #: the weight was cut off from its history where it enters the quantizer
    cut_at_entry: bool = False
    #: a buffer's weights were trained or loaded before: frozen on purpose, as under an adapter
    was_trained: bool = False
    #: gradient goes through the use of a buffer, to what lies before it
    carries_gradient: bool = False
    #: distinct codes seen; 0 where they were not
    levels: int = 0
    #: steps at which the use was seen
    seen: int = 0
    first: Fidelity | None = None
    last: Fidelity | None = None
    #: optimizer steps since the used values were rounded, at most, over the steps seen
    age_steps: int = 0
    #: share of the used values that differ from those a fresh quantization gives; None: it was not run again
    stale_share: float | None = None
    #: steps seen in which a cast was used again after the weight had been written to; the largest share of
    #: its values that a cast of the weight as it was then would have had otherwise; the user's line
    outdated_steps: int = 0
    outdated_share: float = 0.0
    outdated_at: Place | None = None
    #: distance of the weight, and of what is used, between first and last sight, over the weight's norm
    weight_moved: float = 0.0
    used_moved: float = 0.0
    #: share of the codes that change from one step to the next; that differ between first and last sight; of
    #: the changes that undo the one before. None where codes were not seen twice
    flips_per_step: float | None = None
    changed_share: float | None = None
    undone_share: float | None = None
    #: steps between first and last sight of the codes
    span_steps: int = 0
    #: share of the weight's gradient that is not zero, and of that of the used values
    gradient_density: float | None = None
    used_density: float | None = None
    #: cosine of the weight's gradient with that of the used values, which an estimator would pass through
    gradient_cosine: float | None = None
    #: after the step, the weight was overwritten by values rounded from it: there is no finer copy
    rewritten_at: Place | None = None
    #: random numbers went into those values: stochastic rounding
    rewritten_at_random: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DataQuantizer:
    """A clamp and a rounding of data in a module's forward pass, or a cast to 8 bits: that of activations."""

    #: qualified name of the module; empty when it was not known
    module: str
    place: Place | None = None
    #: times it was seen, and the optimizer steps made before the first and the last
    seen: int = 0
    first_step: int = 0
    last_step: int = 0
    #: share of the values other than 0 that lie beyond the range, then and at last
    clipped_share_first: float = 0.0
    clipped_share: float = 0.0
    #: share of the values that are not finite, at last
    non_finite_share: float = 0.0
    #: share of the values other than 0 that are used as zero, and the largest value over the bound of the
    #: range, at last; 0 and 1 where they are not known
    flushed_share: float = 0.0
    reach: float = 1.0
    #: signal to quantization noise ratio of the rounding alone, decibels, at last; None where it is not known
    #: and where the error is zero
    sqnr_db: float | None = None
    #: columns (features, or channels of images) that vary, and those of them that are far smaller than the
    #: largest and were used as zero each time, and how often that was looked at; 0 where they are not known
    columns: int = 0
    lost_columns: int = 0
    column_passes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientQuantizer:
    """A rounding of gradients of one shape in a backward pass; medians over the times it was seen."""

    #: user's line in the function that the gradient was handed to, and that of the rounding
    place: Place | None = None
    rounding: Place | None = None
    #: the user's function that the gradient enters: "quantize"
    function: str = ""
    shape: tuple[int, ...] = ()
    #: format of what the rounding gave
    format: str = ""
    #: times it was seen
    seen: int = 0
    #: random numbers go into it: stochastic rounding
    random: bool = False
    #: share of the gradient that is left: <used, gradient> / <gradient, gradient>; None where the used values
    #: are codes, whose scale follows after the product
    projection: float | None = None
    #: sum of the errors, without its sign, over that of the gradient's magnitudes: about 0 where roundings up
    #: and down cancel
    bias: float | None = None
    #: signal to quantization noise ratio, decibels; None as for the projection, and where the error is zero
    sqnr_db: float | None = None
    #: share of the values other than 0 that are used as zero, and what they are of the squared gradient
    flushed_share: float = 0.0
    flushed_energy: float = 0.0
