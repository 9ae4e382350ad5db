"""PD405: loss scaling with a format that has float32's range."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Evidence, Scaler
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, loss_scale, short_type


class NeedlessScaler(Rule):
    """Losses are scaled, and nothing runs in float16, the format that needs it.

    ## What it means

    Loss scaling lifts gradients into float16's range. In bfloat16 and float32 they have a range of 2^-126 and
    more as they are; the scale, a power of two, changes no digit.

    ## Why it hurts

    It does little harm: each step reads a flag back from the device, and a gradient that is inf for another
    reason is skipped in silence where it should be seen. Mostly it shows that the format is not the one that
    the author had in mind.

    ## Criterion

    A note where a scaler is enabled and used, products were seen, none of them in float16, and no parameter
    or gradient is in float16.

    ## Blind spots

    Products are seen while the operation probe is awake.

    ## Remedies

    Drop the scaler, or enable it for float16 only: `GradScaler(enabled=dtype == torch.float16)`.

    ## References

    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740, section 3.2
    - Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training, arXiv 1905.12322
    """

    id: ClassVar[str] = "PD405"
    name: ClassVar[str] = "needless-scaler"
    example: ClassVar[str] = "needless_scaler.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a note per scaler."""
        products = [*evidence.products_outside, *(p for r in evidence.regions for p in r.products)]
        seen = {p.format for p in products}
        kept = {p.format for p in evidence.parameters} | {p.gradient.format for p in evidence.parameters}
        if not seen or "float16" in seen | kept:
            return []
        used = [s for s in evidence.scalers if s.enabled and s.updates]
        return [cls._finding(scaler, seen) for scaler in used]

    @classmethod
    def _finding(cls, scaler: Scaler, seen: set[str]) -> Finding:
        formats = " and ".join(sorted(seen))
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="note",
            subjects=(Subject(kind="op", name=short_type(scaler.type)),),
            message=(
                f"The loss is scaled by {loss_scale(scaler.scale)}{at(scaler.scaled_at)}, and all products "
                f"run in {formats}, whose range needs no scaling."
            ),
            locations=locations([scaler.place], [scaler.scaled_at]),
            measured={"scale": scaler.scale, "formats": formats},
            prescriptions=ranked(
                [("no-scaler", "drop it, or enable it for float16 only: nothing is rounded differently")]
            ),
        )
