"""PD106: a weight is written back through a coarser grid outside the optimizer, and its updates are lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Evidence, Place, Quantizer, WindowedEdq
from precdoctor.rules.finding import Finding, Severity
from precdoctor.rules.merges import lossy_merges
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import (
    FLOAT32_BITS,
    Stepped,
    format_named,
    locations,
    parameter_subjects,
    stepped,
)
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, number, percent, several

#: EDQ of what is left of the updates, below which a warning and an error are due (measured: 0.802 and 0.006
#: rounded to nearest, 1.000 and 0.754 stochastically)
WARNING_EDQ = 0.9
ERROR_EDQ = 0.7
#: share of updated elements written over, from which it is the weight that is kept on the grid
MIN_REWRITTEN = 0.05
#: share of the elements written over that 16 bits hold, from which the weight was cast to 16 bits and back
MIN_NARROWED = 0.99
#: the same as ERROR_EDQ for values rounded stochastically, whose saturation is biased (0.754 was measured)
RANDOM_EDQ = 0.3


_Rewritten = tuple[Stepped, WindowedEdq, Quantizer | None]


class TruncatedWeight(Rule):
    """After the optimizer's step the weight is rounded in place, and what the step has added is rounded away.

    ## What it means

    The weight has no finer copy: after each update it is overwritten by its own quantized values, or cast to
    16 bits and back. An update smaller than half the grid's step there is lost, as it would be in a weight of
    that format, and the optimizer's own arithmetic does not show it. A merge of trained weights into a base
    of 16 bits (LoRA, ReLoRA) is the same outside of any step: what was learnt is added once, rounded to the
    base's spacing, and the adapters begin anew.

    ## Why it hurts

    Rounded to nearest, a grid of 4 bits swallows nearly every update: the descent that was left was
    measured as 0.006 of what was meant, although only 6.6 % of the elements were exactly unchanged, because
    blocks change their scale. The loss ended at 3.33, with stochastic rounding at 1.52, with float32
    weights at 0.33.

    ## Criterion

    What is left of an update when the next step begins is compared with what was meant: an error below an
    EDQ of 0.7, a warning below 0.9, both with the upper end of the 95 % interval, where at least 5 % of the
    updated elements were written over and the values written were seen to be rounded or cast from the
    weight itself, or are all values that 16 bits hold in a weight of float32 (`model.bfloat16()` for an
    evaluation, and `model.float()` after it). What is merged is judged by the same limits, at the merge:
    the change of the base against what was to be added to it. For stochastic rounding, of which single
    steps are noise, an error below 0.3 only. Projections, clipping, pruning masks and averages written into
    the weights are none of that.

    ## Blind spots

    Needs steps observed one after the other, as the first ten are, and the operation probe, which sees what
    is written in the first steps and ever more rarely later (steps 5, 10, 15, 20, 30, 50, ...).

    ## Remedies

    Keep the base in float32 as long as something is merged into it. Keep float32 weights and quantize what
    the forward pass uses (`w + (Q(w) - w).detach()`); where there is no memory for that, round
    stochastically.

    ## References

    - Gupta et al. 2015, Deep Learning with Limited Numerical Precision, arXiv 1502.02551 (stochastic
      rounding)
    - huggingface/peft issue 1388 (merging into 16-bit and quantized bases)
    - Courbariaux et al. 2015, BinaryConnect, arXiv 1511.00363 (real-valued weights beside binary ones)
    """

    id: ClassVar[str] = "PD106"
    name: ClassVar[str] = "truncated-weight"
    example: ClassVar[str] = "truncated_weight.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per line that writes weights back, and severity."""
        written = {q.parameter: q for q in evidence.quantizers if q.rewritten_at is not None}
        sorts: dict[tuple[Place | None, Severity], list[_Rewritten]] = {}
        for item in stepped(evidence):
            left, quantizer = item.updates.rewritten, written.get(item.parameter.name)
            known = quantizer is not None or _is_narrowed(item)
            if not known or left is None or item.updates.rewritten_share < MIN_REWRITTEN:
                continue
            severity = _severity(left, quantizer)
            cast = item.parameter.cast
            place = quantizer.rewritten_at if quantizer is not None else cast.place if cast else None
            if severity is not None:
                sorts.setdefault((place, severity), []).append((item, left, quantizer))
        found = [cls._finding(members, place, severity) for (place, severity), members in sorts.items()]
        return [*found, *lossy_merges(evidence, cls.id, cls.name)]

    @classmethod
    def _finding(
        cls,
        members: Sequence[_Rewritten],
        place: Place | None,
        severity: Severity,
    ) -> Finding:
        worst, left, quantizer = min(members, key=lambda m: m[1].edq)
        names = [item.parameter.name for item, _, _ in members]
        who = names[0] if len(names) == 1 else f"{count(len(names), 'weight')} ({several(names)})"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=parameter_subjects(item.parameter for item, _, _ in members),
            message=(
                f"{who}: written over after the step{at(place)} by values rounded from "
                f"{'it' if len(names) == 1 else 'them'}, without a finer copy; when the next step begins "
                f"{percent(max(left.edq, 0))} of the descent meant for {worst.parameter.name} is left "
                f"(EDQ {number(left.edq)})."
            ),
            locations=locations(
                [place], [quantizer.rounding, quantizer.place] if quantizer is not None else []
            ),
            measured={
                "edq": left.edq,
                "edq_low": left.low,
                "edq_high": left.high,
                "rewritten_share": worst.updates.rewritten_share,
                "edq_of_the_step": worst.updates.edq[0].edq if worst.updates.edq else None,
                "parameters": len(names),
            },
            prescriptions=ranked(
                [
                    (
                        "float32-latent",
                        "keep float32 weights for the optimizer and quantize what is used of them",
                    ),
                    (
                        "stochastic-rounding",
                        "round up or down by chance, so that the mean of the update is kept",
                    ),
                ]
            ),
        )


def _is_narrowed(item: Stepped) -> bool:
    """Tell whether a weight in float32 is written over by what 16 bits hold, after a cast from them."""
    cast = item.parameter.cast
    before = format_named(cast.before) if cast is not None else None
    is_cast = before is not None and before.bits < FLOAT32_BITS
    return is_cast and not item.is_low and item.updates.narrowed_share >= MIN_NARROWED


def _severity(left: WindowedEdq, quantizer: Quantizer | None) -> Severity | None:
    if quantizer is not None and quantizer.rewritten_at_random:
        return "error" if left.high < RANDOM_EDQ else None
    if left.high < ERROR_EDQ:
        return "error"
    return "warning" if left.high < WARNING_EDQ else None
