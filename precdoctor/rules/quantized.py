"""How rules read the evidence of quantizers: shared by PD601 to PD604."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from precdoctor.evidence import Evidence, Parameter, Place, Quantizer
from precdoctor.rules.finding import Location
from precdoctor.rules.reading import MIN_STEPS, locations, optimizer_of
from precdoctor.rules.wording import count, several

#: share of the used values' gradient density that a straight-through estimator passes on at least
MIN_DENSITY = 0.1
#: cosine with the straight-through gradient below which the weight's gradient is another one
MIN_COSINE = 0.3
#: elements from which the density of a gradient says something
MIN_ELEMENTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A weight with a quantizer, and the parameter it is; None for a buffer."""

    quantizer: Quantizer
    parameter: Parameter | None


def quantized(evidence: Evidence) -> list[Quantized]:
    """Return the quantizers of weights that an optimizer steps or should step, and those of buffers."""
    by_name = {p.name: p for p in evidence.parameters}
    found = []
    for quantizer in evidence.quantizers:
        parameter = by_name.get(quantizer.parameter)
        if quantizer.route == "buffer":
            found.append(Quantized(quantizer=quantizer, parameter=None))
        elif parameter is not None and parameter.trainable and optimizer_of(evidence, parameter) is not None:
            found.append(Quantized(quantizer=quantizer, parameter=parameter))
    return found


def severed_as(item: Quantized) -> str:
    """Return how the gradient is cut off between the used values and the weight; empty where it is not.

    "cut", "zero derivative", or "scale only": gradient arrives through the scale alone.
    """
    quantizer, parameter = item.quantizer, item.parameter
    if quantizer.kind != "quantizer" or parameter is None:
        return ""
    gradient = parameter.gradient
    if quantizer.route == "cut" and gradient.present == 0 and gradient.absent >= MIN_STEPS:
        return "cut"
    zero = gradient.present >= MIN_STEPS and gradient.all_zero == gradient.present
    if zero and quantizer.route in ("zero derivative", "custom function"):
        return "zero derivative"
    density, used, cosine = quantizer.gradient_density, quantizer.used_density, quantizer.gradient_cosine
    if density is None or used is None or cosine is None or quantizer.numel < MIN_ELEMENTS:
        return ""
    return "scale only" if density < MIN_DENSITY * used and cosine < MIN_COSINE else ""


def explained_by_quantizer(evidence: Evidence) -> frozenset[str]:
    """Return the parameters without gradient whose quantizer is the reason (PD601)."""
    items = [i for i in quantized(evidence) if severed_as(i)]
    return frozenset(i.quantizer.parameter for i in items)


def by_quantizer(items: Iterable[Quantized]) -> list[list[Quantized]]:
    """Sort weights into lists that share the line where they enter their quantizer."""
    sorts: dict[Place | None, list[Quantized]] = {}
    for item in items:
        sorts.setdefault(item.quantizer.place, []).append(item)
    return list(sorts.values())


def quantizer_locations(items: Sequence[Quantized]) -> tuple[Location, ...]:
    """Return the lines where weights enter the quantizer (causes), round and are used (sites)."""
    causes = [i.quantizer.place or i.quantizer.rounding or i.quantizer.used_at for i in items]
    sites = [p for i in items for p in (i.quantizer.rounding, i.quantizer.used_at)]
    return locations(causes, sites)


def who(items: Sequence[Quantized]) -> str:
    """Return the weights in words: "13 weights (a, b, c and 10 more)"."""
    names = [i.quantizer.parameter for i in items]
    return names[0] if len(names) == 1 else f"{count(len(names), 'weight')} ({several(names)})"


def elements(items: Sequence[Quantized]) -> int:
    """Return the number of elements of the weights together."""
    return sum(i.quantizer.numel for i in items)
