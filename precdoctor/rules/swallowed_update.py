"""PD102: a substantial part of the descent is lost to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Accumulation, Evidence
from precdoctor.rules.by_hand import is_frozen_by_hand, updated_by_hand
from precdoctor.rules.descent import is_frozen, is_meant, quality
from precdoctor.rules.finding import Finding, Severity
from precdoctor.rules.measures import measured, sample_note, worst
from precdoctor.rules.prescriptions import for_lost_updates
from precdoctor.rules.reading import Stepped, by_cause, format_locations, parameter_subjects, stepped
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import count, number, percent

#: EDQ below which a loss is worth a warning, and an error (measured on bfloat16 and quantized latents:
#: at 0.96 a run is harmless, at 0.58 it ended 0.54 higher)
WARNING_EDQ, ERROR_EDQ = 0.9, 0.7
#: intended updates (element x step) from which a partial loss is judged: +-7 % on a share
MIN_JUDGED = 200


class SwallowedUpdate(Rule):
    """A substantial part of the descent that the optimizer meant is lost to rounding.

    ## What it means

    Some updates exceed half the gap to the next representable value and arrive, rounded to a whole gap;
    the others vanish. Small weights, which have small gaps, still learn; large ones do not. The effective
    descent quality EDQ = <applied, intended> / <intended, intended> says how much of the step is left:
    1 is descent as meant, 0 is none.

    ## Why it hurts

    The run learns, more slowly than it should and along a different path. Bfloat16 matrices of standard
    deviation 0.02 lose 40 % of their updates at lr 3e-4, all of them small: EDQ 0.96, no harm. At lr 3e-5
    they lose 91 % and EDQ is 0.23: three quarters of the training is not happening. Fine-tuning a 135 M
    model in bfloat16 at lr 1e-5 left 98 % of the elements where they were.

    ## Criterion

    EDQ at the upper end of its 95 % interval is below 0.9 (warning) or 0.7 (error), for a parameter in a
    format below float32 that is not frozen altogether (PD101), over at least 200 intended updates in 3
    observed steps, of 1e-6 of the weight per step or more; alike for weights that a line of the program
    updates itself, over 8 updates or more. Optimizers that bring small updates through in
    the long run are judged by their net travel. The share of lost updates is reported and never decides: a
    copy of a float32 master is unchanged in 99 % of the steps and healthy.

    ## Blind spots

    EDQ of single steps does not see a loss that only shows in the sum (many small updates of one sign
    between large ones of alternating signs). In float32 and wider nothing is claimed.

    ## Remedies

    As for PD101: float32 weights under autocast, float32 master weights, stochastic rounding, Kahan
    summation. Raising the learning rate restores EDQ and changes the run.

    ## References

    - Yu et al. 2024, Collage, arXiv 2405.03637, section 4 (effective descent quality)
    - Zamirai et al. 2020, Revisiting BFloat16 Training, arXiv 2010.06192
    - PULSE, arXiv 2602.03839 (99 % unchanged copies beside float32 masters are benign)
    """

    id: ClassVar[str] = "PD102"
    name: ClassVar[str] = "swallowed-update"
    example: ClassVar[str] = "swallowed_update.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per cause, as grave as its gravest parameter."""
        rated = {i.parameter.name: (i, cls._severity(i, evidence)) for i in stepped(evidence)}
        findings = []
        for group in by_cause(item for item, severity in rated.values() if severity is not None):
            is_error = any(rated[i.parameter.name][1] == "error" for i in group)
            findings.append(cls._finding(evidence, group, "error" if is_error else "warning"))
        return [*findings, *updated_by_hand(evidence, (cls.id, cls.name), _severity_by_hand)]

    @classmethod
    def _severity(cls, item: Stepped, evidence: Evidence) -> Severity | None:
        found = quality(item, evidence.run)
        if found is None or not item.is_low or item.writes_nothing:
            return None
        if is_frozen(item, evidence.run) or not is_meant(item, evidence.run, MIN_JUDGED):
            return None
        return "error" if found.best < ERROR_EDQ else "warning" if found.best < WARNING_EDQ else None

    @classmethod
    def _finding(cls, evidence: Evidence, items: Sequence[Stepped], severity: Severity) -> Finding:
        item, found = worst(evidence, items)
        edq = found.edq if found is not None else 0.0
        values = measured(evidence, items)
        who = (
            f"{item.parameter.name} ({item.format.name}) loses"
            if len(items) == 1
            else f"{count(len(items), 'parameter')} in {item.format.name} lose"
        )
        text = f"{who} part of the descent: EDQ {number(edq)}"
        if len(items) > 1:
            text += f" at the worst ({item.parameter.name})"
        lost, bits = values.get("lost_share"), values.get("headroom_bits_p50")
        if isinstance(lost, float):
            text += f"; {percent(lost)} of {values['intended_updates']:,} observed updates lost"
        if isinstance(bits, float):
            text += f", the median one {abs(bits):.1f} bits {'short' if bits < 0 else 'above half an ulp'}"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=parameter_subjects(i.parameter for i in items),
            message=f"{text}{sample_note(evidence, items)}.",
            locations=format_locations(items),
            measured=values,
            prescriptions=for_lost_updates(items, among=evidence.parameters),
        )


def _severity_by_hand(record: Accumulation) -> Severity | None:
    if is_frozen_by_hand(record):
        return None
    return "error" if record.edq_high < ERROR_EDQ else "warning" if record.edq_high < WARNING_EDQ else None
