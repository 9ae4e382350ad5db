"""PD507: the loss is a number of 16 bits, whose spacing hides its progress."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

from precdoctor.evidence import Evidence
from precdoctor.formats import Format, ulp
from precdoctor.rules.exactness import exactness
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import format_named, locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import number, percent

#: losses that are looked at, the last ones, and how many there must be
LOOKED_AT = 100
MIN_LOSSES = 20
#: share of them that equal the one before from which the spacing hides the progress: losses of random
#: batches differ by far more than an ulp, those of one batch by as much as is learnt
SAME_SHARE = 0.8


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
    bits and its values differ.

    ## Blind spots

    The loss that `backward` is called on; other metrics are not looked at.

    ## Remedies

    Compute the loss on `logits.float()`, or reduce it with `.float().mean()`.

    ## References

    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740, section 3.3
    """

    id: ClassVar[str] = "PD507"
    name: ClassVar[str] = "coarse-loss"
    example: ClassVar[str] = "coarse_loss.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return the finding, if there is one."""
        seen = exactness(evidence)
        form = format_named(seen.loss_format)
        losses = [loss for _, loss in evidence.losses if math.isfinite(loss)][-LOOKED_AT:]
        if form is None or form.bits != 16 or not losses:
            return []
        return [cls._of(evidence, form, losses)]

    @classmethod
    def _of(cls, evidence: Evidence, form: Format, losses: list[float]) -> Finding:
        seen = exactness(evidence)
        same = [a == b != 0 for a, b in itertools.pairwise(losses)]
        share = sum(same) / len(same) if same else 0.0
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
