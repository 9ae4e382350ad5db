"""Which parameters wait for a gradient that does not come: shared by PD201 and PD202."""

from __future__ import annotations

from precdoctor.evidence import Evidence, Parameter
from precdoctor.rules.quantized import explained_by_quantizer
from precdoctor.rules.reading import MIN_STEPS, optimizer_of


def without_gradient(evidence: Evidence) -> list[Parameter]:
    """Return the trainable parameters of optimizers whose ``.grad`` was None at every observed step.

    Those whose quantizer is the reason (PD601) are left out.
    """
    explained = explained_by_quantizer(evidence)
    return [
        p
        for p in evidence.parameters
        if p.trainable
        and p.name not in explained
        and not _is_stale(evidence, p)
        and p.gradient.present == 0
        and p.gradient.absent >= MIN_STEPS
    ]


def _is_stale(evidence: Evidence, parameter: Parameter) -> bool:
    """Tell whether no optimizer holds a parameter, or only as a tensor of no model (PD406)."""
    optimizer = optimizer_of(evidence, parameter)
    return optimizer is None or parameter.name in optimizer.stale


def with_zero_gradient(evidence: Evidence) -> list[Parameter]:
    """Return the trainable parameters of optimizers whose gradient was always exactly zero, as above."""
    explained = explained_by_quantizer(evidence)
    return [
        p
        for p in evidence.parameters
        if p.trainable
        and p.name not in explained
        and optimizer_of(evidence, p) is not None
        and p.gradient.present >= MIN_STEPS
        and p.gradient.all_zero == p.gradient.present
    ]


def is_detached(evidence: Evidence) -> bool:
    """Tell whether the loss reached no parameter at all."""
    return evidence.backward is not None and evidence.backward.detached
