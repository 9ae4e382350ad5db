"""What a recipe holds, as plain numbers. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: what memory goes to, in the order of the tables
CATEGORIES = (
    "weights",
    "scales",
    "masters",
    "compensation",
    "gradients",
    "optimizer state",
    "buffers",
    "activations",
)

#: relative deviation of the estimate from a real step that is called agreement: of what is held between
#: steps, and of the activations (a kernel may keep other tensors than its fake one says)
TOLERANCE_HELD, TOLERANCE_ACTIVATIONS = 0.01, 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one recipe holds at the end of the forward pass, estimated."""

    recipe: str
    what: str
    #: bytes by category; those of `CATEGORIES`
    bytes: Mapping[str, int]
    #: bytes of activations that come with each sample, and those that come anyway (copies of weights)
    per_sample_bytes: float
    fixed_bytes: float

    @property
    def total_bytes(self) -> int:
        """Return the sum of all categories."""
        return sum(self.bytes.values())

    @property
    def between_bytes(self) -> int:
        """Return what is held after a step, with its gradients: all but the activations."""
        return self.total_bytes - self.bytes["activations"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """An estimate beside what a real step allocated."""

    what: str
    estimated_bytes: int
    measured_bytes: int
    #: relative deviation that is called agreement
    tolerance: float

    @property
    def deviation(self) -> float:
        """Return by how much the estimate is off, relative to what was measured."""
        return self.estimated_bytes / self.measured_bytes - 1 if self.measured_bytes else 0.0

    @property
    def holds(self) -> bool:
        """Tell whether the estimate is within the tolerance."""
        return abs(self.deviation) <= self.tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What the weights alone would take in a format."""

    format: str
    bytes: int
    #: less than in float32, as a share
    saved_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """What a model takes to train by a recipe, and by the others."""

    #: what was built, as it was called
    name: str
    #: samples of a training step that are in memory at once
    batch: int
    #: shapes of the first batch, as it came
    batch_shapes: tuple[str, ...]
    #: elements of the parameters, each once, and of those that are trained
    elements: int
    trained_elements: int
    chosen: Holding
    #: every recipe, the chosen one among them
    recipes: tuple[Holding, ...]
    #: of the weights as products read them: codes and scales
    packed_bytes: int
    #: of a file with the weights that the recipe trains, and of one with optimizer state as well
    file_bytes: int
    checkpoint_bytes: int
    #: the files were written (to nowhere) and counted; else added up
    files_measured: bool
    formats: tuple[Packed, ...]
    #: empty where no real step was made
    checks: tuple[Check, ...]
    #: the most that a real step held at once; None without one
    peak_bytes: int | None
    notes: tuple[str, ...]
    torch: str
    device: str

    def holding(self, recipe: str) -> Holding | None:
        """Return the figures of another recipe; None where the model can't be run in it."""
        return next((one for one in self.recipes if one.recipe == recipe), None)

    def __str__(self) -> str:
        """Return the report for a terminal."""
        from precdoctor.memory import text

        return text.render(self)
