"""What was seen in checkpoints: of every tensor in one file, and of its way from one file to the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from precdoctor.evidence.histogram import Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFile:
    """A checkpoint: a file, or a directory of them."""

    path: str
    #: "safetensors", "torch" or "torch distributed"
    kind: str
    tensors: int
    #: size of its files
    nbytes: int
    #: optimizers whose state is in it, such as "AdamW"
    optimizers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The values of one tensor in one file; all elements were looked at."""

    #: name of a format, or of a torch dtype that is none, such as "int64"
    format: str
    shape: tuple[int, ...]
    nbytes: int
    #: elements that are NaN, and infinite
    nan: int = 0
    infinite: int = 0
    #: largest finite magnitude
    largest: float = 0.0
    #: the value of all elements, where they have the same; None where they differ
    constant: float | None = None
    #: elements that are exactly 1.0; None where that was not counted (more than one dimension)
    ones: int | None = None
    #: the narrower format that holds every value exactly, and whose last bits are used; empty where none is
    fits: str = ""
    #: rises or falls from each element to the next, as tables of positions and frequencies do
    monotonic: bool = False
    #: all values are 0 or one other value, as in masks
    is_mask: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Travel:
    """The way of one tensor from the first file to the second, in the coarser of its two formats."""

    #: the format in which both are compared; where formats differ, the finer one is rounded to it first
    format: str
    #: elements compared, and those of them whose bits are the same
    compared: int
    identical: int
    #: largest distance, in ulps: steps from one value of the format to the next
    ulps_max: float = 0.0
    #: moved elements that what follows was read from: all, or evenly spread runs of a large tensor
    sampled: int = 0
    #: log2 of the distance in ulps: bin ``i`` holds distances from ``2**i`` to below ``2**(i + 1)``
    ulps: Histogram = field(default_factory=lambda: Histogram(low=0.0, width=1.0, counts=()))
    ulps_median: float = 0.0
    #: share (0..1) of the moved elements that increased
    ups_share: float = 0.0
    #: log2 of the travel over half an ulp at the first value, in bits, per half bit
    headroom_bits: Histogram = field(default_factory=lambda: Histogram(low=0.0, width=0.5, counts=()))
    #: median magnitude of the travel of moved elements
    typical: float = 0.0
    #: largest half-ulp over which an element moved (99th percentile of the moved ones)
    half_ulp_passed: float = 0.0
    #: half-ulps of all elements at their first value: 1st percentile and median
    half_ulp_low: float = 0.0
    half_ulp_median: float = 0.0
    #: the second file has exactly what rounding the first to the coarser format gives
    rounded: bool = False
    #: share of the elements that this rounding changed, and its size (rms) relative to the values
    rounding_share: float = 0.0
    rounding_error: float = 0.0

    @property
    def identical_share(self) -> float:
        """Return the share (0..1) of elements whose bits are the same; 1 for a tensor without elements."""
        return self.identical / self.compared if self.compared else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prognosis:
    """The next update of one parameter, replayed from the optimizer's state, as one format would store it."""

    format: str
    #: elements looked at, and those of them with an update other than 0
    watched: int
    intended: int
    #: share (0..1) of the intended updates after which the element is unchanged
    lost_share: float = 0.0
    #: <applied, intended> / <intended, intended>
    edq: float | None = None
    headroom_bits: Histogram = field(default_factory=lambda: Histogram(low=0.0, width=0.5, counts=()))
    #: median magnitude of the weights and of the updates
    weight: float = 0.0
    update: float = 0.0
    #: the format is the one in which the weight is stored
    stored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One name, in either file or in both."""

    name: str
    kind: Literal["parameter", "buffer", "state"]
    #: the first file's, and the second's where there are two; None where the name is missing
    first: Stored | None = None
    second: Stored | None = None
    #: None where it can't be compared: missing, another shape, no numbers with a fraction
    travel: Travel | None = None
    #: bits are the same in both files, for tensors of integers as well; None where not compared
    identical: bool | None = None
    #: an optimizer whose state is in the last file steps it; None where no such state is there
    stepped: bool | None = None
    #: that optimizer's memory of the gradient has elements other than 0
    driven: bool = False
    #: state of the optimizer holds the weight in more digits
    has_master: bool = False
    #: state as large as the weight that the plain optimizer does not have: what rounding lost may be there
    extra_state: tuple[str, ...] = ()
    prognoses: tuple[Prognosis, ...] = ()

    @property
    def last(self) -> Stored | None:
        """Return what the last file that has it holds."""
        return self.second if self.second is not None else self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedData:
    """Names that stand for the same data in the first file, or in the only one."""

    names: tuple[str, ...]
    #: "storage": the file holds it once; "data": several times, with equal bits
    by: Literal["storage", "data"]
    #: the second file has different data under these names; None where there is no second
    broken: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """All that was seen of one or two checkpoints."""

    files: tuple[CheckpointFile, ...]
    tensors: tuple[Tensor, ...] = ()
    shared: tuple[SharedData, ...] = ()
    #: what the replay of the next update takes for the gradient, by optimizer, in sentences
    assumptions: tuple[str, ...] = ()
    #: formats that were asked for beside the stored one
    formats: tuple[str, ...] = ()
