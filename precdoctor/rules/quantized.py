"""How rules read the evidence of quantizers: shared by PD601 to PD604."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from precdoctor.evidence import Evidence, GradientQuantizer, Parameter, Place, Quantizer
from precdoctor.rules.finding import Finding, Location, Severity, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import MIN_STEPS, gets_gradient, locations, optimizer_of
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import count, several

#: share of the used values' gradient density that a straight-through estimator passes on at least
MIN_DENSITY = 0.1
#: cosine with the straight-through gradient below which the weight's gradient is another one
MIN_COSINE = 0.3
#: elements from which the density of a gradient says something
MIN_ELEMENTS = 64
#: times that a gradient's rounding must have been seen
MIN_SEEN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A weight with a quantizer, and the parameter it is; None for a buffer."""

    quantizer: Quantizer
    parameter: Parameter | None
    #: another parameter of its optimizer gets gradient
    others_get_gradient: bool = False


def quantized(evidence: Evidence) -> list[Quantized]:
    """Return the quantizers of weights that an optimizer steps or should step, and those of buffers."""
    by_name = {p.name: p for p in evidence.parameters}
    found = []
    for quantizer in evidence.quantizers:
        parameter = by_name.get(quantizer.parameter)
        if quantizer.route == "buffer":
            found.append(Quantized(quantizer=quantizer, parameter=None))
        elif parameter is not None and parameter.trainable and optimizer_of(evidence, parameter) is not None:
            others = any(
                p.optimizer == parameter.optimizer and p is not parameter and gets_gradient(p)
                for p in evidence.parameters
            )
            found.append(Quantized(quantizer=quantizer, parameter=parameter, others_get_gradient=others))
    return found


def severed_as(item: Quantized) -> str:
    """Return how the gradient is cut off between the used values and the weight; empty where it is not.

    "cut", "zero derivative", or "scale only": gradient arrives through the scale alone.
    """
    quantizer, parameter = item.quantizer, item.parameter
    if quantizer.kind != "quantizer" or parameter is None:
        return ""
    gradient, route = parameter.gradient, quantizer.route
    density, used, cosine = quantizer.gradient_density, quantizer.used_density, quantizer.gradient_cosine
    if gradient.present == 0:
        # where nothing gets gradient, something clears it after the function has returned it
        none = route == "cut" or (route == "custom function" and item.others_get_gradient)
        return "cut" if none and gradient.absent >= MIN_STEPS else ""
    if gradient.present >= MIN_STEPS and gradient.all_zero == gradient.present:
        zero = route == "zero derivative" or (route == "custom function" and used != 0)
        return "zero derivative" if zero else ""
    if density is None or quantizer.numel < MIN_ELEMENTS:
        return ""
    if route == "cut":  # what gradient there is comes by a scale that follows after the product
        return "scale only" if density < MIN_DENSITY else ""
    if used is None or cosine is None or cosine >= MIN_COSINE:
        return ""
    by_scale = route in ("zero derivative", "scale only") or density < MIN_DENSITY * used
    return "scale only" if by_scale else ""


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


def gradient_quantizers(
    evidence: Evidence, is_ill: Callable[[GradientQuantizer], bool]
) -> list[list[GradientQuantizer]]:
    """Return those of gradients for which that holds, in lists that share their lines, by shape."""
    sorts: dict[tuple[Place | None, Place | None], list[GradientQuantizer]] = {}
    for item in evidence.gradient_quantizers:
        if item.seen >= MIN_SEEN and is_ill(item):
            sorts.setdefault((item.place, item.rounding), []).append(item)
    return list(sorts.values())


def named_shape(item: GradientQuantizer) -> str:
    """Return a gradient's shape in words: "4 x 32 x 1,024"."""
    return " x ".join(f"{size:,}" for size in item.shape)


def gradient_finding(
    rule: type[Rule], item: GradientQuantizer, severity: Severity, message: str, cure: tuple[str, str]
) -> Finding:
    """Return a finding on gradients that are rounded, with everything that was measured of them."""
    return Finding(
        rule=rule.id,
        name=rule.name,
        severity=severity,
        subjects=(Subject(kind="op", name=item.function or "backward"),),
        message=message,
        locations=locations([item.place], [item.rounding]),
        measured={
            "projection": item.projection,
            "bias": item.bias,
            "sqnr_db": item.sqnr_db,
            "flushed_share": item.flushed_share,
            "flushed_energy": item.flushed_energy,
            "seen": item.seen,
        },
        prescriptions=ranked([cure]),
    )


def who(items: Sequence[Quantized]) -> str:
    """Return the weights in words: "13 weights (a, b, c and 10 more)"."""
    names = [i.quantizer.parameter for i in items]
    return names[0] if len(names) == 1 else f"{count(len(names), 'weight')} ({several(names)})"


def elements(items: Sequence[Quantized]) -> int:
    """Return the number of elements of the weights together."""
    return sum(i.quantizer.numel for i in items)
