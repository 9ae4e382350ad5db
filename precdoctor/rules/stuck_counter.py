"""PD305: a counter in a low format stops."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Accumulation, Counter, Evidence
from precdoctor.formats import Format
from precdoctor.rules.accumulated import (
    accumulation_locations,
    accumulation_subjects,
    origin_of,
    stands_at,
)
from precdoctor.rules.finding import Finding, Severity, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import FLOAT32_BITS, format_named, locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.swamped_sum import missing_share, sum_measures, sum_severity, sum_text
from precdoctor.rules.wording import at, count, number, several, short_type

#: readings over which it must have stood still: one could be a step that the optimizer left out
MIN_STANDING = 3
#: share of the way to where it stops from which a run that has ended by itself is warned all the same
NEAR = 0.5


class StuckCounter(Rule):
    """A step or sample counter is kept in a low format and stops: at 256 in bfloat16, at 2048 in float16.

    ## What it means

    256 + 1 is 256 in bfloat16: half an ulp there is 1, and the tie goes to even. A counter of steps that is a
    tensor of that format, because the default format leaked or because it is made like the weights, stays at
    256 for ever; one that counts samples by 64 stays at 16,384.

    ## Why it hurts

    Bias corrections, warm-up, schedules and averages go by the count. Adam with beta2 0.999 divides by 1 -
    0.999^256 = 0.226 from then on, so its second moment reads 4.4 times too large, and steps are half of what
    was meant until the end.

    ## Criterion

    An optimizer's state, or an entry of a parameter group, of one element below float32, grew by a constant
    amount per step and then had the same value at 3 or more observed steps, where half an ulp is as large as
    the amount: an error. A counter that is on the way there is a warning, with the steps that are left; a
    note where the run ended by itself before half of the way. Elsewhere (buffers, plain tensors) additions of
    one and the same whole number are a counter, judged as PD505 judges sums.

    ## Blind spots

    Counters that move by varying amounts are sums (PD505). Counters on an accelerator are read without
    waiting for it, at the observed steps only.

    ## Remedies

    A Python int, an integer tensor, or float32 (which counts to 16,777,216).

    ## References

    - pytorch/pytorch issue 75214; pytorch/ao issues 2286 and 4915
    - Kingma and Ba 2015, Adam, arXiv 1412.6980, section 3 (bias correction)
    """

    id: ClassVar[str] = "PD305"
    name: ClassVar[str] = "stuck-counter"
    example: ClassVar[str] = "stuck_counter.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per counter of an optimizer, and per line that counts elsewhere."""
        found = [f for c in evidence.counters if (f := cls._of_optimizer(evidence, c)) is not None]
        for record in evidence.accumulations:
            severity, fmt = _counting(record), format_named(record.format)
            if severity is not None and fmt is not None:
                found.append(cls._elsewhere(evidence, record, fmt, severity))
        return found

    @classmethod
    def _of_optimizer(cls, evidence: Evidence, counter: Counter) -> Finding | None:
        fmt = format_named(counter.format)
        if fmt is None or fmt.bits >= FLOAT32_BITS or counter.increment <= 0:
            return None
        limit = stands_at(fmt, counter.increment)
        severity = _severity(evidence, counter, limit)
        if severity is None:
            return None
        optimizer = (
            evidence.optimizers[counter.optimizer] if counter.optimizer < len(evidence.optimizers) else None
        )
        kind = short_type(optimizer.type) if optimizer is not None else "the optimizer"
        text = (
            f"{counter.key} of {kind} ({several(counter.parameters) or 'all parameters'}) counts in "
            f"{counter.format}, where {number(limit)} + {number(counter.increment)} is {number(limit)}: "
        )
        if severity == "error":
            text += f"it stands at {number(counter.last_value)} after {count(counter.last_step, 'step')}"
        else:
            left = (limit - counter.last_value) / counter.increment
            text += f"it is at {number(counter.last_value)} and will stop in {count(round(left), 'step')}"
        default = evidence.low_default if counter.default else None
        causes = [default, counter.made]
        built = optimizer.place if optimizer is not None else None
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=tuple(Subject(kind="state", name=name) for name in counter.parameters)
            or (Subject(kind="optimizer", name=kind),),
            message=text + ".",
            locations=locations(causes if any(causes) else [built], [counter.made, built]),
            measured={
                "state": counter.key,
                "format": counter.format,
                "value": counter.last_value,
                "steps": counter.last_step,
                "increment": counter.increment,
                "stands_at": limit,
            },
            prescriptions=ranked(
                [
                    (
                        "float32-accumulator",
                        f"count in a Python int, or in float32{at(default or counter.made)}, which "
                        "counts to 16,777,216",
                    )
                ]
            ),
        )

    @classmethod
    def _elsewhere(cls, evidence: Evidence, record: Accumulation, fmt: Format, severity: Severity) -> Finding:
        place = origin_of(evidence, record)
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=accumulation_subjects(record),
            message=sum_text(record, fmt, "counter"),
            locations=accumulation_locations(evidence, record),
            measured={**sum_measures(record, fmt), "missing_share": missing_share(record)},
            prescriptions=ranked(
                [
                    (
                        "float32-accumulator",
                        f"count in an integer tensor or a Python int{at(place)}: neither ever rounds",
                    )
                ]
            ),
        )


def _counting(record: Accumulation) -> Severity | None:
    if record.kind != "sum" or not record.counts or record.compensated:
        return None
    if record.recent_lost_share == 1.0 and record.standing >= MIN_STANDING:
        return "error"
    return sum_severity(record)


def _severity(evidence: Evidence, counter: Counter, limit: float) -> Severity | None:
    stood = counter.last_step - counter.stands_since
    if counter.last_value >= limit:
        return "error" if stood >= MIN_STANDING else "warning"
    if counter.first_value == counter.last_value:
        return None
    ended = evidence.run.ended == "finished" and counter.last_value < NEAR * limit
    return "note" if ended else "warning"
