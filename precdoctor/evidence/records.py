"""What was seen during a run, as plain numbers: never a judgement, never a tensor.

`Evidence` is the one value that passes from observation to everything after it. All counts and
shares speak of the *watched* elements and the *observed* steps of a parameter unless they say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from precdoctor.evidence.accumulations import Accumulation
from precdoctor.evidence.checkpoints import Snapshot
from precdoctor.evidence.contents import Contents
from precdoctor.evidence.counters import Counter
from precdoctor.evidence.decays import RoundedDecay
from precdoctor.evidence.exactness import Exactness
from precdoctor.evidence.gradient_flow import GradientFlow
from precdoctor.evidence.histogram import Binades, Histogram
from precdoctor.evidence.integers import LostIntegers
from precdoctor.evidence.metrics import Metric
from precdoctor.evidence.place import Place
from precdoctor.evidence.predictions import Predictions
from precdoctor.evidence.quantizers import DataQuantizer, GradientQuantizer, Quantizer
from precdoctor.evidence.randoms import CoarseUniform
from precdoctor.evidence.regions import Product, Region
from precdoctor.evidence.scaling import Scaler
from precdoctor.evidence.ties import Tie

SCHEMA = "precdoctor.evidence/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """A change of a parameter's format after it was created."""

    #: format before and after
    before: str
    after: str
    #: how: "module.to", "load_state_dict", "data assignment", "default dtype", "created", ...
    how: str
    #: the user's line, where it is known
    place: Place | None = None
    #: the assignment that names the format, where that line takes it from a constant
    constant: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowedEdq:
    """Effective descent quality of one window length (Collage, Yu et al. 2024, section 4)."""

    #: steps summed before the inner products; 0 means the whole run
    window: int
    #: <applied, intended> / <intended, intended>: 1 = as meant, 0 = frozen
    edq: float
    #: 95 % confidence interval, cluster-robust over runs of neighbouring elements
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One watched element at the last observed step: the arithmetic of a finding in one line."""

    #: flat index of the element in the parameter
    index: int
    #: its value before the step
    weight: float
    #: the update that the optimizer meant to apply, and the one that was stored
    intended: float
    applied: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decay:
    """Weight decay's part of the update, apart from the gradient's."""

    #: the group's lr x weight_decay at the last observed step (relative shrink per step)
    per_step: float
    #: share of the intended decay that arrived, by regression of the applied update on both parts
    arrived: float
    #: 95 % confidence interval of ``arrived``
    low: float
    high: float
    #: sum of the intended decay over all steps of the run, relative to the weight
    intended_total: float
    #: share of the intended decay (squared) that changed neither the weight nor any state of the optimizer
    gone: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Updates:
    """Intended against applied updates of one parameter."""

    #: how intended updates were found: "elementwise" replay of the watched elements, "whole tensor"
    #: replay, or "none" (the optimizer could not be replayed: only motion is known)
    replay: str
    #: why there is no replay; empty where there is one
    why_not: str = ""
    #: number of (element, step) pairs with an intended update other than 0
    intended: int = 0
    #: share of them after which the stored element was unchanged
    lost_share: float = 0.0
    #: share of the elements with any intended update that never moved
    never_moved_share: float = 0.0
    #: by window length: 1, 4, 16 and 0 (the whole run)
    edq: tuple[WindowedEdq, ...] = ()
    #: stored travel against the shadow's last value: the measure for optimizers that carry what
    #: rounding lost (Kahan, own masters), None when the whole travel is below half an ulp
    net_edq: float | None = None
    #: headroom in bits, counts per half bit
    headroom_bits: Histogram = field(default_factory=lambda: Histogram(low=0, width=0.5, counts=()))
    #: the same bins weighted by the squared intended update: what a change of lr would restore
    headroom_energy: Histogram = field(default_factory=lambda: Histogram(low=0, width=0.5, counts=()))
    #: the same as if every learning rate had been 1, the latest steps weighing most: the state of the run,
    #: from which a schedule's later rates are foreseen. Bits are those at lr, less log2(lr)
    headroom_per_lr: Histogram = field(default_factory=lambda: Histogram(low=0, width=0.5, counts=()))
    #: number of intended and of applied increases and decreases
    ups_intended: int = 0
    downs_intended: int = 0
    ups_applied: int = 0
    downs_applied: int = 0
    #: mean over elements of the summed update: where the parameter as a whole drifted
    drift_intended: float = 0.0
    drift_applied: float = 0.0
    #: root mean square of the intended update over that of the weight, per step
    relative_rms: float = 0.0
    #: share of the stored results that the replay, rounded to the format, misses by more than an ulp
    mismatch_share: float = 0.0
    #: share of (element, step) pairs that something else than the optimizer changed before the next step,
    #: share of these that 16 bits hold (zero aside), and the EDQ of what is left of the update then; None
    #: where steps one after the other were not observed
    rewritten_share: float = 0.0
    narrowed_share: float = 0.0
    rewritten: WindowedEdq | None = None
    decay: Decay | None = None
    example: Example | None = None
    #: EDQ (window 1) of each stretch of `Evidence.timeline`; None where nothing was intended
    timeline: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """What reached ``.grad`` at the observed steps."""

    #: format of the gradient; empty when none was ever seen
    format: str = ""
    #: observed steps with and without a gradient (``.grad is None``)
    present: int = 0
    absent: int = 0
    #: of the steps with a gradient: those in which every watched element was exactly zero
    all_zero: int = 0
    binades: Binades | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """The stored values at the first and the last observation."""

    #: median, smallest and largest magnitude at the last observation
    abs_median: float
    abs_min: float
    abs_max: float
    #: mean at the first and the last observation
    mean_first: float
    mean_last: float
    #: share of the watched elements that differ between the two
    moved_share: float
    #: share whose magnitude is a power of two: the gap below is half the gap above
    power_of_two_share: float
    #: watched elements that are not finite at the last observation
    non_finite: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """Everything seen of one parameter."""

    #: qualified name in the model
    name: str
    #: element format, such as "bfloat16"
    format: str
    shape: tuple[int, ...]
    #: number of watched elements; equal to the product of the shape when all are watched
    watched: int
    #: class of the module that owns it; empty when no module does
    module: str = ""
    #: requires_grad at the last observation
    trainable: bool = True
    #: ran the owning module's forward? None when that was not observed
    used: bool | None = None
    #: its module ran inside the forward of a model that an optimizer steps; None: not observed
    used_by_model: bool | None = None
    #: index in `Evidence.optimizers` of the optimizer that steps it, and of its group; None: in no optimizer
    optimizer: int | None = None
    group: int | None = None
    #: name of the parameter whose float32 master this is (it lives outside the model), else None
    master_of: str | None = None
    #: this parameter is the rounded copy of a float32 master that an optimizer steps
    copy_of_master: bool = False
    #: registered with the model only after the optimizer had been constructed; None when not known
    created_after_optimizer: bool | None = None
    #: registered under the same root module as the parameters of an optimizer
    in_model: bool = True
    created: Place | None = None
    #: the line at which it took the place of another in its module
    replaced: Place | None = None
    #: the change of format that gave it its present one
    cast: Cast | None = None
    weight: Weight | None = None
    gradient: Gradient = field(default_factory=Gradient)
    updates: Updates | None = None

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A tensor of the optimizer's state in a format below float32, one per parameter and key."""

    #: qualified name of the parameter it belongs to
    parameter: str
    #: the optimizer's own key, such as "exp_avg_sq"
    key: str
    #: what it does, found by regression: "first moment", "second moment" or "other"
    role: str
    format: str
    #: fitted decay (beta) of a moment; None for "other"
    beta: float | None = None
    #: intended against stored change of the state, all observed steps (window 1)
    edq: float = 1.0
    #: the same over the elements that were meant to fall
    edq_down: float = 1.0
    #: share of intended changes after which the stored element was unchanged
    lost_share: float = 0.0
    #: share of the (element, step) pairs with a gradient that left the exact state other than 0 and are
    #: stored as 0
    flushed_share: float = 0.0
    #: share of the elements with gradients that were 0 at all steps, and the largest gradient that went
    #: into one
    never_share: float = 0.0
    never_largest_gradient: float = 0.0
    #: median over elements of stored / exact value at the end (second moments); None when not known
    over_exact: float | None = None
    #: the same of stored value / mean of the squared gradients at the last observed steps, which is where an
    #: exact average goes
    over_gradient: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the user's own optimizer did on a toy tensor in the run's format beside a float64 twin."""

    group: int
    format: str
    #: EDQ of several hundred steps whose updates lie below half an ulp; None when it could not run
    edq_small: float | None = None
    #: EDQ of steps whose updates are several ulp: below 0.5 the optimizer does not write its results
    edq_large: float | None = None
    #: the shadow's own results lie on the format's grid: it rounds inside, intended updates are noisy
    rounds_inside: bool = False
    #: draws random numbers
    random: bool = False
    #: a step with zero gradient and fresh state stays finite; None when it could not run
    zero_gradient_finite: bool | None = None
    #: why it could not run; empty when it did
    why_not: str = ""

    @property
    def preserves(self) -> bool:
        """Tell whether updates below half an ulp get through in the long run."""
        return self.edq_small is not None and self.edq_small >= 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One parameter group of an optimizer."""

    #: learning rate at the first and the last observed step, and its largest value
    lr_first: float | None = None
    lr_last: float | None = None
    lr_max: float | None = None
    weight_decay: float = 0.0
    betas: tuple[float, ...] = ()
    eps: float | None = None
    #: number of tensors
    tensors: int = 0
    #: the user's line that gave the group its learning rate
    place: Place | None = None
    #: what the attached scheduler will do: (steps from now, lr); empty without one
    lr_future: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """An optimizer of the process."""

    #: full class name, such as "torch.optim.adamw.AdamW"
    type: str
    #: calls of step(), and those that were observed in detail
    steps: int = 0
    observed: int = 0
    groups: tuple[Group, ...] = ()
    benches: tuple[Bench, ...] = ()
    #: names of tensors it holds that belong to no live module and never got a gradient
    stale: tuple[str, ...] = ()
    #: where it was constructed
    place: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backward:
    """The autograd graph at the first backward passes."""

    #: the user's line that called backward
    place: Place | None = None
    #: parameters that the graph of the loss reaches
    reaches: tuple[str, ...] = ()
    #: parameters reached only through nodes whose derivative is zero everywhere (round, sign, ...)
    zero_derivative: tuple[str, ...] = ()
    #: names of those nodes, such as "RoundBackward0"
    zero_nodes: tuple[str, ...] = ()
    #: True when the graph ends only in leaves that are no parameter of any module or optimizer
    detached: bool = False
    #: lines that cut the graph (found by searching the source of the function that calls backward)
    cuts: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A line of the user's code that calls a model: a module with parameters, inside no other module."""

    place: Place
    #: what is called there, such as "self.model"; empty where Python does not tell
    expression: str = ""
    #: type of the device of the model's parameters: "cpu", "cuda", ...
    device: str = ""
    #: the format of the autocast region that was active; empty when none was
    autocast: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The run itself."""

    #: script, module or "Doctor"
    target: str
    argv: tuple[str, ...] = ()
    #: optimizer steps (of the optimizer that made most), and how many were observed in detail
    steps: int = 0
    observed: int = 0
    #: how it ended: "finished", "stopped" (by --steps), "interrupted", "exited", "failed", "watched"
    ended: str = "watched"
    exit_code: int = 0
    #: last line of the script's traceback when it failed
    error: str = ""
    torch: str = ""
    python: str = ""
    device: str = ""
    #: start, ISO 8601 with offset
    started: str = ""
    #: wall time from start to end, and CPU time spent observing
    seconds: float = 0.0
    observing_seconds: float = 0.0
    #: what could not be observed and why, in sentences
    limits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was seen of one run."""

    run: Run
    parameters: tuple[Parameter, ...] = ()
    states: tuple[State, ...] = ()
    optimizers: tuple[Optimizer, ...] = ()
    backward: Backward | None = None
    #: where models were called in the first steps; empty when that was not observed
    forwards: tuple[Forward, ...] = ()
    scalers: tuple[Scaler, ...] = ()
    #: autocast regions, and the products of forward passes that ran in none
    regions: tuple[Region, ...] = ()
    products_outside: tuple[Product, ...] = ()
    #: integers and evenly spaced numbers that lost digits on their way to something that depends on them
    integers: tuple[LostIntegers, ...] = ()
    #: what uniform random numbers of 16 bits were used for
    uniforms: tuple[CoarseUniform, ...] = ()
    #: factors just below 1 that were rounded, and what was scaled by them
    decays: tuple[RoundedDecay, ...] = ()
    #: trained weights that lost digits on the way to or from a checkpoint
    snapshots: tuple[Snapshot, ...] = ()
    #: tensors of checkpoints; None where none was read
    contents: Contents | None = None
    #: quantizers of weights; empty when the operation probe did not run
    quantizers: tuple[Quantizer, ...] = ()
    #: quantizers of data, such as activations, that clamp and round
    data_quantizers: tuple[DataQuantizer, ...] = ()
    gradient_quantizers: tuple[GradientQuantizer, ...] = ()
    #: predictions behind the losses of training passes, one per line that computes one
    predictions: tuple[Predictions, ...] = ()
    #: sums, averages and merges in a low format, one per line that adds
    accumulations: tuple[Accumulation, ...] = ()
    #: what float16 did to gradients; None when the operation probe did not run
    gradient_flow: GradientFlow | None = None
    #: step counters that optimizers keep in a low format
    counters: tuple[Counter, ...] = ()
    #: the line that made a format below float32 the default one
    low_default: Place | None = None
    #: parameters that were registered in two places, where there are two tensors now
    ties: tuple[Tie, ...] = ()
    #: forward passes beside the same in float64; None when the operation probe did not run
    exactness: Exactness | None = None
    #: the operation probe looked at forward passes
    probed: bool = False
    #: (step, loss) at the recorded backward passes
    losses: tuple[tuple[int, float], ...] = ()
    #: values that schedules wait on, one per line that gives them
    metrics: tuple[Metric, ...] = ()
    #: last step of each stretch that `Updates.timeline` speaks of
    timeline: tuple[int, ...] = ()
    #: text of the user's source files around the places above: (file, first line, lines)
    excerpts: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    schema: str = SCHEMA
