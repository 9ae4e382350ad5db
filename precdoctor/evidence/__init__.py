"""Evidence: what was seen, as plain numbers; the spine of precdoctor. Imports no torch."""

from precdoctor.evidence.accumulations import Accumulation
from precdoctor.evidence.checkpoints import Snapshot
from precdoctor.evidence.codec import EvidenceError, from_json, load, save, to_json
from precdoctor.evidence.contents import (
    CheckpointFile,
    Contents,
    Prognosis,
    SharedData,
    Stored,
    Tensor,
    Travel,
)
from precdoctor.evidence.counters import Counter
from precdoctor.evidence.decays import RoundedDecay
from precdoctor.evidence.exactness import (
    Cancellation,
    Exactness,
    LossySum,
    NonFinite,
    NonFiniteGradient,
    Phase,
    Site,
)
from precdoctor.evidence.gradient_flow import Attempts, GradientFlow, GradientLoss
from precdoctor.evidence.histogram import Binades, Histogram
from precdoctor.evidence.integers import IntegerUse, LostIntegers
from precdoctor.evidence.metrics import Metric
from precdoctor.evidence.place import Place
from precdoctor.evidence.predictions import Predicted, Predictions
from precdoctor.evidence.quantizers import DataQuantizer, Fidelity, GradientQuantizer, Quantizer
from precdoctor.evidence.randoms import CoarseUniform
from precdoctor.evidence.records import (
    SCHEMA,
    Backward,
    Bench,
    Cast,
    Decay,
    Evidence,
    Example,
    Forward,
    Gradient,
    Group,
    Optimizer,
    Parameter,
    Run,
    State,
    Updates,
    Weight,
    WindowedEdq,
)
from precdoctor.evidence.regions import Product, Region
from precdoctor.evidence.scaling import Bypass, EarlyClip, Scaler
from precdoctor.evidence.ties import Tie

__all__ = [
    "SCHEMA",
    "Accumulation",
    "Attempts",
    "Backward",
    "Bench",
    "Binades",
    "Bypass",
    "Cancellation",
    "Cast",
    "CheckpointFile",
    "CoarseUniform",
    "Contents",
    "Counter",
    "DataQuantizer",
    "Decay",
    "EarlyClip",
    "Evidence",
    "EvidenceError",
    "Exactness",
    "Example",
    "Fidelity",
    "Forward",
    "Gradient",
    "GradientFlow",
    "GradientLoss",
    "GradientQuantizer",
    "Group",
    "Histogram",
    "IntegerUse",
    "LossySum",
    "LostIntegers",
    "Metric",
    "NonFinite",
    "NonFiniteGradient",
    "Optimizer",
    "Parameter",
    "Phase",
    "Place",
    "Predicted",
    "Predictions",
    "Product",
    "Prognosis",
    "Quantizer",
    "Region",
    "RoundedDecay",
    "Run",
    "Scaler",
    "SharedData",
    "Site",
    "Snapshot",
    "State",
    "Stored",
    "Tensor",
    "Tie",
    "Travel",
    "Updates",
    "Weight",
    "WindowedEdq",
    "from_json",
    "load",
    "save",
    "to_json",
]
