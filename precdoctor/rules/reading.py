"""How rules read evidence: who is stepped by what, what belongs together, which lines are to blame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from precdoctor.evidence import Bench, Evidence, Group, Histogram, Optimizer, Parameter, Place, Updates
from precdoctor.formats import Format, FormatError, by_name
from precdoctor.rules.finding import Location, Subject

#: bits of float32: what rounding loses in formats of this width or more is harmless
FLOAT32_BITS = 32
#: observed steps from which "at all observed steps" is said
MIN_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """A parameter that an optimizer steps, with everything that belongs to it."""

    parameter: Parameter
    updates: Updates
    format: Format
    optimizer: Optimizer
    group: Group
    #: the bench test of its group in its format, where there was one
    bench: Bench | None

    @property
    def is_low(self) -> bool:
        """Tell whether the weight's format is below float32."""
        return self.format.bits < FLOAT32_BITS

    @property
    def preserves(self) -> bool:
        """Tell whether the optimizer brings updates below half an ulp through in the long run."""
        return self.bench is not None and self.bench.preserves

    @property
    def writes_nothing(self) -> bool:
        """Tell whether the optimizer failed on the bench to write updates of several ulp."""
        return self.bench is not None and self.bench.edq_large is not None and self.bench.edq_large < 0.5


def stepped(evidence: Evidence) -> list[Stepped]:
    """Return the trainable parameters that an optimizer steps and whose updates were observed."""
    found = []
    for parameter in evidence.parameters:
        optimizer, fmt = optimizer_of(evidence, parameter), format_named(parameter.format)
        if optimizer is None or fmt is None or parameter.updates is None or not parameter.trainable:
            continue
        found.append(
            Stepped(
                parameter=parameter,
                updates=parameter.updates,
                format=fmt,
                optimizer=optimizer,
                group=group_of(evidence, parameter) or Group(),
                bench=bench_of(evidence, parameter),
            )
        )
    return found


def format_named(name: str) -> Format | None:
    """Return the format of that name, None for a name that the catalogue does not know."""
    try:
        return by_name(name)
    except FormatError:
        return None


def optimizer_of(evidence: Evidence, parameter: Parameter) -> Optimizer | None:
    """Return the optimizer that steps a parameter."""
    index = parameter.optimizer
    return evidence.optimizers[index] if index is not None and index < len(evidence.optimizers) else None


def group_of(evidence: Evidence, parameter: Parameter) -> Group | None:
    """Return the parameter group that a parameter is in."""
    optimizer, index = optimizer_of(evidence, parameter), parameter.group
    if optimizer is None or index is None or index >= len(optimizer.groups):
        return None
    return optimizer.groups[index]


def bench_of(evidence: Evidence, parameter: Parameter) -> Bench | None:
    """Return the bench test of a parameter's group in the parameter's format."""
    optimizer = optimizer_of(evidence, parameter)
    if optimizer is None:
        return None
    for bench in optimizer.benches:
        if bench.group == parameter.group and bench.format == parameter.format:
            return bench
    return None


def cause_of_format(parameter: Parameter) -> Place | None:
    """Return the line that gave a parameter its format: the cast, else the creation."""
    return parameter.cast.place if parameter.cast is not None else parameter.created


def lr_place(item: Stepped) -> Place | None:
    """Return the line that gave a parameter its learning rate, else the optimizer's construction."""
    return item.group.place or item.optimizer.place


def by_cause(items: Iterable[Stepped]) -> list[list[Stepped]]:
    """Sort parameters into lists that share format and the line that gave them that format."""
    sorts: dict[tuple[str, Place | None], list[Stepped]] = {}
    for item in items:
        sorts.setdefault((item.format.name, cause_of_format(item.parameter)), []).append(item)
    return list(sorts.values())


def locations(causes: Iterable[Place | None], sites: Iterable[Place | None] = ()) -> tuple[Location, ...]:
    """Return causes, then sites, each line once; unknown places are left out."""
    found: dict[tuple[str, int], Location] = {}
    for place in causes:
        if place is not None:
            found.setdefault((place.file, place.line), Location(place=place, role="cause"))
    for place in sites:
        if place is not None:
            found.setdefault((place.file, place.line), Location(place=place, role="site"))
    return tuple(found.values())


def functions(places: Iterable[Place | None]) -> tuple[str, ...]:
    """Return the names of the functions that places are in, each once; those without a name are left out."""
    names = (place.function for place in places if place is not None)
    return tuple(dict.fromkeys(name for name in names if name and not name.startswith("<")))


def format_locations(items: Sequence[Stepped]) -> tuple[Location, ...]:
    """Return the lines that gave parameters their format (causes) and learning rate (sites).

    Where a cast takes its format from a constant, the constant's line is a cause as well.
    """
    casts = [i.parameter.cast for i in items]
    constants = (cast.constant for cast in casts if cast is not None)
    return locations([*(cause_of_format(i.parameter) for i in items), *constants], map(lr_place, items))


def parameter_subjects(parameters: Iterable[Parameter]) -> tuple[Subject, ...]:
    """Return the parameters as subjects of a finding."""
    return tuple(Subject(kind="parameter", name=p.name) for p in parameters)


def gets_gradient(parameter: Parameter) -> bool:
    """Tell whether a gradient other than zero was seen."""
    return parameter.gradient.present > parameter.gradient.all_zero


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Return the sum of histograms whose bins have one width and lie on one grid."""
    filled = [h for h in histograms if h.counts]
    if not filled:
        return Histogram(low=0, width=1, counts=())
    width, low = filled[0].width, min(h.low for h in filled)
    counts = [0.0] * max(round((h.low - low) / width) + len(h.counts) for h in filled)
    for histogram in filled:
        offset = round((histogram.low - low) / width)
        for index, count in enumerate(histogram.counts):
            counts[offset + index] += count
    return Histogram(low=low, width=width, counts=tuple(counts))
