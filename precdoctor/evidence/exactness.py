"""What was seen of values beside the same in float64: where they leave their format, or lose digits."""

from __future__ import annotations

from dataclasses import dataclass

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """An operation of a forward pass, or of the user's own code, at which something was seen."""

    #: the user's line, and the line that brought the error or the format in; None where they are not known
    place: Place | None = None
    cause: Place | None = None
    #: lines that made the constants it began with, such as ``torch.zeros(...)``
    births: tuple[Place, ...] = ()
    #: the user's function
    function: str = ""
    #: qualified names of the modules whose forward was running
    modules: tuple[str, ...] = ()
    #: the operation, such as "mul", and the format of its result
    operation: str = ""
    format: str = ""
    #: optimizer steps made before it was first and last seen, and forward passes in which it was seen
    first_step: int = 0
    last_step: int = 0
    passes: int = 0
    #: autograd recorded it, and gradient goes through it
    graded: bool = False
    #: what wrong values of it reached, each with the number of passes: "layer" (an operation with weights),
    #: "loss" (one not yet down to a hundredth of what it was), "gradient", "parameter", "logarithm" (or a
    #: reciprocal, and from there something else), "read" (by Python, as a number),
    #: "schedule" (a root, logarithm or quotient of what a number leaves of values looked up in a schedule),
    #: "choice" (of elements by these values, half of which exact ones would have made otherwise)
    reached: tuple[tuple[str, int], ...] = ()
    #: where they were first seen to, and the largest error there: its norm over that of the exact value
    reached_at: Place | None = None
    reached_error: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NonFinite(Site):
    """Finite values that gave inf or NaN."""

    #: "overflow": the exact result is finite and beyond the format; "underflow": exact values give a finite
    #: result, those rounded before do not; "undefined": not finite in exact arithmetic either
    kind: str
    #: values added, or brought into the format, to hide elements: beyond the range on the negative side
    mask: bool = False
    #: the operation sums, or squares what is summed
    reduction: bool = False
    #: largest magnitude of the exact result, and share of the result that is not finite, at worst
    largest: float | None = None
    share: float = 0.0
    #: where NaN was first made of it, and the passes in which that was seen
    nan_at: Place | None = None
    nan_passes: int = 0
    #: passes in which Python read such a value, and in which ``backward`` was called on one
    read_passes: int = 0
    loss_passes: int = 0
    #: passes of a finite loss in which its NaN got into gradients that were kept
    gradient_passes: int = 0
    #: lines that saved such values in a checkpoint, and that loaded them into a module
    saved_at: Place | None = None
    loaded_at: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NonFiniteGradient:
    """Finite gradients of a finite loss that gave inf or NaN on their way back."""

    #: the user's line of the forward operation, or of the function of his own that made it, and its function
    place: Place | None = None
    function: str = ""
    #: autograd's node, such as "SqrtBackward0", the operation in it, and the format of its result
    node: str = ""
    operation: str = ""
    format: str = ""
    #: optimizer steps made before it was first seen
    first_step: int = 0
    #: NaN is among them; share of the result that is not finite, at worst
    is_nan: bool = False
    share: float = 0.0
    #: backward passes in which it was seen, and optimizer steps that were taken with gradients not finite
    passes: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation(Site):
    """A difference of which few correct digits are left."""

    #: operation that brought most of the error in, and its format
    source: str = ""
    source_format: str = ""
    #: what it rounded are probabilities or their logarithms
    probabilities: bool = False
    #: it goes into an exponential that it puts off: it is the logarithm of a ratio
    ratio: bool = False
    #: one of torch's derivatives makes it, of the forward operation whose line this is
    derivative: bool = False
    #: norm of the error over norm of the exact value: of the arguments and of the result, at worst
    error_before: float = 0.0
    error: float = 0.0
    #: the same of the result in the first pass in which it was damaged
    error_first: float = 0.0
    #: share of the elements with an error above half their value
    share: float = 0.0
    #: norm of the exact result over that of its largest argument
    remaining: float = 0.0
    #: passes in which it reached something and a model was evaluated
    evaluations: int = 0
    #: of two numbers that another line has made: the same quantity at two times, such as two losses
    repeated: bool = False
    #: times that what scales an addend was it, or a number seen to go by what Python reads of it (both zero,
    #: or of the same sign, or of opposite signs, all times in a row), and where
    steered: int = 0
    steered_at: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LossySum(Site):
    """A sum, made term by term, that has lost what its terms brought."""

    #: norm of the error over norm of the exact value, at worst
    error: float = 0.0
    #: median error of a sum of logarithms, at worst, and passes in which it was above 1
    nats: float = 0.0
    nats_passes: int = 0
    #: passes in which terms were added by an index, and were lost in more than one place of the result
    indexed_passes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase(Site):
    """Arguments of sin or cos that are off by a good part of a turn."""

    #: share of the arguments that are off by more than half a radian, and largest error in radians
    share: float = 0.0
    error_rad: float = 0.0
    #: largest argument in radians
    largest: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactness:
    """Forward passes beside the same in float64."""

    #: forward passes (told apart by the calls of backward) and operations that were compared
    passes: int = 0
    operations: int = 0
    #: passes in which layers ran without gradient; the first few
    evaluations: int = 0
    non_finite: tuple[NonFinite, ...] = ()
    non_finite_gradients: tuple[NonFiniteGradient, ...] = ()
    cancellations: tuple[Cancellation, ...] = ()
    lossy_sums: tuple[LossySum, ...] = ()
    phases: tuple[Phase, ...] = ()
    #: format of the value that backward was first called on, and the line
    loss_format: str = ""
    loss_place: Place | None = None
    #: (step, relative error of the loss) where it was compared
    loss_errors: tuple[tuple[int, float], ...] = ()
