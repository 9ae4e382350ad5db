"""What `compare` and `memory` work on: a model, batches and a loss, from a user's ``build()`` or a folder."""

from precdoctor.evaluation.allocations import Allocations, storage_bytes
from precdoctor.evaluation.batches import (
    batch_size,
    cast_floating,
    forward,
    move,
    resized,
    rows,
    sample_losses,
    take,
    target_of,
)
from precdoctor.evaluation.build import load
from precdoctor.evaluation.evaluation import Evaluation, EvaluationError, check_model, to_device
from precdoctor.evaluation.huggingface import load_folder

__all__ = [
    "Allocations",
    "Evaluation",
    "EvaluationError",
    "batch_size",
    "cast_floating",
    "check_model",
    "forward",
    "load",
    "load_folder",
    "move",
    "resized",
    "rows",
    "sample_losses",
    "storage_bytes",
    "take",
    "target_of",
    "to_device",
]
