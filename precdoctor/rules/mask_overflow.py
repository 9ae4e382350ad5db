"""PD504: values that hide elements go beyond the range of their format."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Evidence
from precdoctor.evidence.exactness import NonFinite
from precdoctor.rules.exactness import (
    exactness,
    first_non_finite_step,
    line_of,
    overflow_in_words,
    site_locations,
    spoils_gradients,
    spoils_loss,
    stays_non_finite,
    subjects,
    told_of_gradients,
)
from precdoctor.rules.finding import Finding
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count


class MaskOverflow(Rule):
    """Fill values of masks, or sums of them, become -inf.

    ## What it means

    An additive mask hides an element by a very negative number: -1e9, or the lowest that the format has
    (`torch.finfo(dtype).min`). -1e9 is beyond float16, and two masks that meet on an element add up to
    beyond any format. What comes out is -inf.

    ## Why it hurts

    One -inf is what was meant: its weight in the softmax is 0. But where all elements of a row are -inf (an
    empty caption, a padded query), the softmax is 0/0 and NaN, where the finite number would have given an
    even row that nobody looks at. It comes with the first batch that has such a row, maybe late.

    ## Criterion

    A sum of, or a cast or product that gives, values beyond the lowest number of the format, where the same
    in float64 is finite; a sum counts as one of masks where an argument is below half of the lowest number
    and none is a gradient (PD204). A note where nothing came of it; an error where NaN was made of it and
    the loss is not finite, where the loss is finite (a mean that leaves NaN out) and its gradients are not,
    in at least two forward passes and 10 % of those seen, whether or not the step is then skipped, and where
    the loss stays inf or NaN and nothing else was seen to make it so.

    ## Blind spots

    Looked at in the steps in which the operation probe is awake. -inf that is written on purpose is no
    overflow: rows of nothing but that are reported where they spoil the loss (PD501).

    ## Remedies

    Combine masks as booleans and fill once (`masked_fill(a | b, torch.finfo(dtype).min)`); use
    `F.scaled_dot_product_attention` with a boolean mask; see to it that each row keeps an element.

    ## References

    - huggingface/transformers issue 17306 (sums of finfo.min), NVIDIA-NeMo/Automodel issue 2658
    """

    id: ClassVar[str] = "PD504"
    name: ClassVar[str] = "mask-overflow"
    example: ClassVar[str] = "mask_overflow.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per operation."""
        seen = exactness(evidence)
        spoilt = any(spoils_loss(s, evidence) and not s.mask for s in seen.non_finite)
        told = told_of_gradients(evidence)
        masks = [s for s in seen.non_finite if s.mask and line_of(s.place) not in told]
        return [cls._at(site, evidence, spoilt=spoilt) for site in masks]

    @classmethod
    def _at(cls, site: NonFinite, evidence: Evidence, *, spoilt: bool) -> Finding:
        message = f"{overflow_in_words(site)}, and what was to hide elements is -inf"
        nan = f"a row of nothing else becomes NaN{at(site.nan_at)}"
        hurts = True
        if spoils_loss(site, evidence):
            message += f"; {nan}, and the loss is not finite"
        elif spoils_gradients(site, exactness(evidence)):
            message += f"; {nan}, which the loss leaves out and its gradients do not"
        elif stays_non_finite(evidence) and not spoilt:
            steps = count(first_non_finite_step(evidence) or 0, "step")
            message += f"; the loss is not finite after {steps}, as from a row of nothing else"
        else:
            hurts = False
            rare = f"{nan}, which has done no harm" if site.nan_passes else "no row of nothing else was seen"
            message += f"; {rare}"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error" if hurts else "note",
            subjects=subjects([site]),
            message=f"{message}.",
            locations=site_locations([site]),
            measured={
                "passes": site.passes,
                "share": site.share,
                "nan_passes": site.nan_passes,
                "loss_passes": site.loss_passes,
                "gradient_passes": site.gradient_passes,
            },
            prescriptions=ranked(
                [("one-mask", "combine the masks as booleans, and fill once with the format's lowest number")]
            ),
        )
