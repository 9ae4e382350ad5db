"""Parameters that get gradients and that no optimizer steps: shared by PD406 and PD407."""

from __future__ import annotations

from precdoctor.evidence import Evidence, Parameter
from precdoctor.rules.reading import gets_gradient

#: looks at a parameter that no optimizer steps, from which it can be said that it did not move
MIN_LOOKS = 2


def orphans(evidence: Evidence) -> list[Parameter]:
    """Return the trainable parameters with gradients that are in no optimizer and that nobody moves.

    The rounded copy of a float32 master is none, nor is a weight that a loop updates by hand, nor one
    whose gradient is left over from before: the loss of this run has to reach it.
    """
    return [
        p
        for p in evidence.parameters
        if p.trainable
        and p.optimizer is None
        and not p.copy_of_master
        and p.master_of is None
        and gets_gradient(p)
        and p.gradient.present + p.gradient.absent >= MIN_LOOKS
        and p.weight is not None
        and p.weight.moved_share == 0
        and _is_reached(evidence, p)
    ]


def _is_reached(evidence: Evidence, parameter: Parameter) -> bool:
    """Tell whether the loss reaches a parameter, as far as that is known.

    The graph was looked at in the first backward passes; what was created later was not in it.
    """
    if evidence.backward is None or parameter.created_after_optimizer:
        return True
    return parameter.name in evidence.backward.reaches


def is_replaced(evidence: Evidence) -> bool:
    """Tell whether an optimizer steps tensors of no model while the model's own go without: PD406."""
    return any(o.stale for o in evidence.optimizers) and bool(orphans(evidence))
