"""PD507: the loss, or what a schedule waits on, is a number of 16 bits, whose spacing hides its progress."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Evidence, Metric
from precdoctor.formats import Format, ulp
from precdoctor.rules.exactness import exactness
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import format_named, functions, locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, number, percent

#: losses that are looked at, the last ones, and how many there must be
LOOKED_AT = 100
MIN_LOSSES = 20
#: share of them that equal the one before from which the spacing hides the progress: losses of random
#: batches differ by far more than an ulp, those of one batch by as much as is learnt
SAME_SHARE = 0.8
#: values that a schedule was given, from which the same is said of them: one comes per epoch
MIN_METRICS = 8


class CoarseLoss(Rule):
    """Loss values in 16 bits whose spacing is larger than what a step changes: progress does not show.

    ## What it means

    A loss of 2.3 in bfloat16 is 2.297 or 2.312 and nothing between. A step that lowers it by 0.1 % leaves
    it the same number, and many such steps do.

    ## Why it hurts

    The gradient does not come from the loss's own digits, so training goes on; but whatever looks at the
    number is blind: early stopping, a schedule that waits for a plateau, the choice of the best checkpoint,
    and whoever reads the log.

    ## Criterion

    A warning where at least 20 losses were recorded, `backward` is called on values of 16 bits, and more
    than 80 % of the last hundred are exactly the one before, other than 0; a note where the loss is of 16
    bits and its values differ. A warning, too, where `ReduceLROnPlateau` is stepped with tensors of 16 bits,
    at least 8 of them, more than 80 % of the last hundred are exactly the one before, other than 0, and it
    has lowered a rate.

    ## Blind spots

    The loss that `backward` is called on and what `ReduceLROnPlateau` gets; other metrics are not looked at,
    nor numbers of Python (`score.item()`), which do not tell the format that they come from.

    ## Remedies

    Compute the loss on `logits.float()`, or reduce it with `.float().mean()`; the same for scores.

    ## References

    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740, section 3.3
    """

    id: ClassVar[str] = "PD507"
    name: ClassVar[str] = "coarse-loss"
    example: ClassVar[str] = "coarse_loss.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding of the loss, and one per line that gives a schedule its values."""
        found = [f for m in evidence.metrics if (f := cls._of_metric(m)) is not None]
        form = format_named(exactness(evidence).loss_format)
        losses = _last([loss for _, loss in evidence.losses])
        if form is not None and form.bits == 16 and losses:
            found.insert(0, cls._of(evidence, form, losses))
        return found

    @classmethod
    def _of_metric(cls, metric: Metric) -> Finding | None:
        form, values = format_named(metric.format), _last(metric.values)
        share = _same_share(values)
        if form is None or form.bits != 16 or len(values) < MIN_METRICS or share <= SAME_SHARE:
            return None
        if not metric.reductions:
            return None
        last, lowered = values[-1], count(metric.reductions, "time")
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning",
            subjects=tuple(
                Subject(kind="op", name=name) for name in functions([metric.place]) or ("ReduceLROnPlateau",)
            ),
            message=f"ReduceLROnPlateau waits on a {form.name}{at(metric.place)}: at {number(last)} its "
            f"spacing is {number(ulp(form, last))}, and {percent(share)} of the last {len(values)} values "
            f"equal the one before; the rate was lowered {lowered}.",
            locations=locations([metric.place]),
            measured={
                "value": last,
                "ulp": ulp(form, last),
                "same_share": share,
                "reductions": metric.reductions,
            },
            prescriptions=ranked([("float32-op", "compute the score in float32, and keep it there")]),
        )

    @classmethod
    def _of(cls, evidence: Evidence, form: Format, losses: list[float]) -> Finding:
        seen = exactness(evidence)
        share = _same_share(losses)
        hides = len(losses) >= MIN_LOSSES and share > SAME_SHARE
        last = losses[-1]
        message = f"the loss is a {form.name}: at {number(last)} its spacing is {number(ulp(form, last))}"
        if hides:
            message += f", and {percent(share)} of the last {len(losses)} values equal the one before"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning" if hides else "note",
            subjects=(Subject(kind="op", name="backward"),),
            message=f"{message}.",
            locations=locations([seen.loss_place]),
            measured={"loss": last, "ulp": ulp(form, last), "same_share": share},
            prescriptions=ranked([("float32-op", "compute the loss in float32, on logits.float()")]),
        )


def _last(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)][-LOOKED_AT:]


def _same_share(values: Sequence[float]) -> float:
    """Return the share of values that equal the one before and are not 0."""
    same = [a == b != 0 for a, b in itertools.pairwise(values)]
    return sum(same) / len(same) if same else 0.0
