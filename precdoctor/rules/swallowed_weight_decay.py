"""PD104: weight decay is below half an ulp of every weight, so it does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Decay, Evidence
from precdoctor.rules.accumulated import (
    accumulation_locations,
    accumulation_subjects,
    is_weight_decay,
    low_format,
    origin_of,
    who,
)
from precdoctor.rules.descent import is_frozen, is_replayed
from precdoctor.rules.finding import Finding, Severity
from precdoctor.rules.prescriptions import for_lost_updates, ranked
from precdoctor.rules.reading import (
    MIN_STEPS,
    Stepped,
    by_cause,
    format_locations,
    parameter_subjects,
    stepped,
)
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, number, percent

#: share of the decay that arrives, at the upper end of its interval, below which it counts as swallowed
MAX_ARRIVED = 0.2
#: share of the decay that leaves no trace in the optimizer either, which carries what is lost of updates
GONE = 0.8
#: decay meant over the whole run, relative to the weight, from which its absence shows: 5 % of the norm
MATTERS_TOTAL = 0.05
#: lr x weight_decay from which it matters whatever the run's length: timescale 2,000 steps
MATTERS_PER_STEP = 5e-4


class SwallowedWeightDecay(Rule):
    """Weight decay is below half an ulp of every weight: it is a no-op.

    ## What it means

    Decoupled decay multiplies a weight by 1 - lr x weight_decay. That changes it by a share of itself, and
    half an ulp is a share of it too: in bfloat16 between 1/512 and 1/256. A decay of 1e-3 per step or less
    rounds back to the same weight, for large and small weights alike. Measured in the loop, foreach and
    fused paths of AdamW: at 1e-4 and 1e-3 no element moves, at 5e-3 every one does.

    ## Why it hurts

    The regulariser you tuned is off. Weights without a gradient (unused inputs, rare tokens) keep their
    initial size: after 600 steps at lr x decay 1e-3 the norm stood at 1.00 of its start, where decay
    means 0.55. The weights with large updates learn, and the loss says nothing.

    ## Criterion

    Regression of the applied updates on the gradient's part and the decay's part of the intended ones: at
    the upper end of the 95 % interval less than 20 % of the decay arrived, in a format below float32. It is
    a warning when the run's decay would have shrunk the weights by 5 % or more, or when lr x weight_decay
    is 5e-4 or more per step; else a note. Parameters that are frozen altogether belong to PD101. The same
    for parameters that a line of the program scales down itself, beside the optimizer, where less than 20 %
    of what it meant arrived.

    ## Blind spots

    Coupled L2 decay, which goes into the gradient before the moments, has no part of its own in the
    update.

    ## Remedies

    Float32 weights, float32 masters, stochastic rounding or Kahan summation: the decay then adds up. A
    larger decay only passes above the threshold, and then all at once.

    ## References

    - Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, arXiv 1711.05101
    - Nerogar/OneTrainer issue 996
    """

    id: ClassVar[str] = "PD104"
    name: ClassVar[str] = "swallowed-weight-decay"
    example: ClassVar[str] = "swallowed_weight_decay.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per cause and severity."""
        found = [i for i in stepped(evidence) if _is_swallowed(i) and not is_frozen(i, evidence.run)]
        findings = []
        for severity in ("warning", "note"):
            for group in by_cause(i for i in found if _severity(i) == severity):
                findings.append(cls._finding(group, severity))
        return [*findings, *cls._by_hand(evidence)]

    @classmethod
    def _finding(cls, items: Sequence[Stepped], severity: Severity) -> Finding:
        item = max(items, key=lambda i: _decay(i).intended_total)
        decay, eps = _decay(item), item.format.eps
        who = (
            f"Weight decay of {item.parameter.name}"
            if len(items) == 1
            else f"Weight decay of {count(len(items), 'parameter')}"
        )
        text = (
            f"{who} is a no-op: it shrinks a weight by {number(decay.per_step)} of itself per "
            f"step, half a {item.format.name} ulp is {number(eps / 4)} .. {number(eps / 2)} of it; "
            f"{percent(max(decay.arrived, 0.0))} arrived (95 % interval {number(decay.low)} .. "
            f"{number(decay.high)})"
        )
        if severity == "warning":
            text += f", where this run meant {percent(decay.intended_total)} of the weights' size"
        else:
            text += f"; at this rate it would matter after some {1 / decay.per_step:,.0f} steps"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=parameter_subjects(i.parameter for i in items),
            message=text + ".",
            locations=format_locations(items),
            measured={
                "parameters": len(items),
                "format": item.format.name,
                "decay_per_step": decay.per_step,
                "decay_arrived": decay.arrived,
                "decay_arrived_low": decay.low,
                "decay_arrived_high": decay.high,
                "decay_intended_total": decay.intended_total,
                "half_ulp_share_min": eps / 4,
                "half_ulp_share_max": eps / 2,
            },
            prescriptions=for_lost_updates(items, scaling=False) if severity == "warning" else (),
        )

    @classmethod
    def _by_hand(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per line that scales the parameters itself, outside of an optimizer."""
        findings = []
        for record in evidence.accumulations:
            fmt = low_format(record)
            if fmt is None or record.decay is None or not is_weight_decay(record):
                continue
            if record.updates < MIN_STEPS or record.edq_high >= MAX_ARRIVED:
                continue
            per_step = 1 - record.decay
            times = max(record.last_step - record.first_step + 1, record.updates // record.tensors)
            total = 1 - record.decay**times
            severity = _grade(total, per_step)
            findings.append(
                Finding(
                    rule=cls.id,
                    name=cls.name,
                    severity=severity,
                    subjects=accumulation_subjects(record, "parameter"),
                    message=(
                        f"{who(record, 'parameter')} in {record.format}: scaled by {record.decay:.6g}"
                        f"{at(record.place)}, which changes nothing: {number(per_step)} of a weight is less "
                        f"than half an ulp, {number(fmt.eps / 4)} .. {number(fmt.eps / 2)} of it; "
                        f"{percent(max(record.edq, 0.0))} of the decay arrived, where this run meant "
                        f"{percent(total)} of the weights' size."
                    ),
                    locations=accumulation_locations(evidence, record),
                    measured={
                        "parameters": record.tensors,
                        "format": record.format,
                        "decay_per_step": per_step,
                        "decay_arrived": record.edq,
                        "decay_arrived_low": record.edq_low,
                        "decay_arrived_high": record.edq_high,
                        "decay_intended_total": total,
                        "half_ulp_share_min": fmt.eps / 4,
                        "half_ulp_share_max": fmt.eps / 2,
                    },
                    prescriptions=ranked(
                        [
                            ("autocast", f"float32 weights{at(origin_of(evidence, record))} take the decay"),
                        ]
                    ),
                )
            )
        return findings


def _decay(item: Stepped) -> Decay:
    decay = item.updates.decay
    assert decay is not None
    return decay


def _is_swallowed(item: Stepped) -> bool:
    decay = item.updates.decay
    if decay is None or not item.is_low or item.writes_nothing or not is_replayed(item):
        return False
    if item.preserves and decay.gone < GONE:
        return False
    return decay.per_step > 0 and decay.high < MAX_ARRIVED


def _severity(item: Stepped) -> Severity:
    decay = _decay(item)
    return _grade(decay.intended_total, decay.per_step)


def _grade(total: float, per_step: float) -> Severity:
    return "warning" if total >= MATTERS_TOTAL or per_step >= MATTERS_PER_STEP else "note"
