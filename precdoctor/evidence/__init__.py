"""Evidence: what was seen, as plain numbers; the spine of precdoctor. Imports no torch."""

from precdoctor.evidence.codec import EvidenceError, from_json, load, save, to_json
from precdoctor.evidence.histogram import Binades, Histogram
from precdoctor.evidence.place import Place
from precdoctor.evidence.predictions import Predicted, Predictions
from precdoctor.evidence.quantizers import DataQuantizer, Fidelity, Quantizer
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
    Scaler,
    State,
    Updates,
    Weight,
    WindowedEdq,
)
from precdoctor.evidence.ties import Tie

__all__ = [
    "SCHEMA",
    "Backward",
    "Bench",
    "Binades",
    "Cast",
    "DataQuantizer",
    "Decay",
    "Evidence",
    "EvidenceError",
    "Example",
    "Fidelity",
    "Forward",
    "Gradient",
    "Group",
    "Histogram",
    "Optimizer",
    "Parameter",
    "Place",
    "Predicted",
    "Predictions",
    "Quantizer",
    "Run",
    "Scaler",
    "State",
    "Tie",
    "Updates",
    "Weight",
    "WindowedEdq",
    "from_json",
    "load",
    "save",
    "to_json",
]
