"""PD503: a sum, a norm or a square is formed in a format that it leaves, or that loses its terms."""

from __future__ import annotations

import math
from typing import ClassVar

from precdoctor.evidence import Evidence
from precdoctor.evidence.exactness import Exactness, LossySum, NonFinite
from precdoctor.rules.exactness import (
    ERROR,
    MIN_PASSES,
    NOISE_SHARE,
    by_line,
    ends,
    exactness,
    foremost,
    harm,
    in_words,
    line_of,
    overflow_in_words,
    site_locations,
    subjects,
    told_of_gradients,
    where,
)
from precdoctor.rules.finding import Finding, Severity
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, number, percent


class LowPrecisionReduction(Rule):
    """A sum, a norm, a variance or a square overflows its format, or rounds away the terms that are added.

    ## What it means

    The square of 256 is beyond float16, and so is the sum of 70,000 ones. A norm, a variance or a loss that
    is summed in 16 bits leaves the range although each value is ordinary. A sum that grows term by term
    stops growing when a term falls below half the spacing at the sum: at 256 ones in bfloat16. So do sums by
    an index, of messages that come in at a node of a graph, which are rounded with each.

    ## Why it hurts

    Mostly in silence: rsqrt(inf) is 0, so a normalised row is exactly zero; a gradient clipped by an
    infinite norm is zero; a Dice loss with an infinite denominator is constant. Nothing turns NaN and
    nothing learns.

    ## Criterion

    An error where finite arguments give inf, the same arguments give a finite result in float64, and finite
    results made of it are off by more than 10 % (norm of the difference to float64 over the norm of
    float64) and reach a layer, the loss, a gradient or a parameter, in at least two forward passes and 10 %
    of those seen; where the loss is not finite by it; and where Python reads the inf in half of the passes.
    Sums formed on one line, term by term, in 16 bits: where the sum is off by more than 5 % and something
    made of it gets there, an error from 50 % on, else a warning. Sums by index (`index_add`, `scatter_add`,
    `index_put` with `accumulate`) are such, where they are off by more than the terms that go in, and by 5 %
    of the root of the sum of their squares, too: sums around zero are none. A warning for them, too, where
    gradient goes through them in half of the passes and half of the error is left without the place where
    it is largest, which may be there to be thrown away. Where it is the logarithm of a sum that is
    carried on (the forward recursion of a hidden Markov model), a warning too where gradient goes through it
    and it is off by more than 1 in half of the passes: a factor of e in what it is the logarithm of. It is
    the median of those within 50 of the largest of their row.

    ## Blind spots

    Forward passes and the user's own code, not backward, in the steps in which the operation probe is
    awake. What happens inside one fused operation is seen by its result alone.

    ## Remedies

    `x.float()` before the sum, and back after it; `sum(dtype=torch.float32)`; `F.rms_norm` and
    `F.layer_norm`, which do it inside; `torch.nn.utils.clip_grad_norm_` on float32 gradients.

    ## References

    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740, section 3.3
    - Higham 2002, Accuracy and Stability of Numerical Algorithms, chapter 4 (summation)
    - pytorch/pytorch issue 133085 (a norm by hand in float16), qubvel-org/segmentation_models.pytorch issue
      463 (Dice loss in float16)
    """

    id: ClassVar[str] = "PD503"
    name: ClassVar[str] = "low-precision-reduction"
    example: ClassVar[str] = "low_precision_reduction.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per operation."""
        seen = exactness(evidence)
        told = told_of_gradients(evidence)
        overflows = [
            s
            for s in seen.non_finite
            if s.kind == "overflow" and s.reduction and not s.mask and line_of(s.place) not in told
        ]
        found = [cls._overflow(sites, evidence) for sites in by_line(overflows)]
        for site in seen.lossy_sums:
            reached = ends(site, seen)
            if reached:
                severity: Severity = "error" if site.reached_error > ERROR else "warning"
                harm_done = f"and that reaches {in_words(reached)}{at(site.reached_at)}"
                found.append(cls._swamped(site, severity, harm_done))
            elif site.graded and _is_usual(site.nats_passes, seen):
                found.append(cls._noise(site))
            elif site.graded and _is_usual(site.indexed_passes, seen):
                found.append(cls._swamped(site, "warning", "and gradient goes through it"))
        return found

    @classmethod
    def _overflow(cls, sites: list[NonFinite], evidence: Evidence) -> Finding:
        site = foremost(sites, evidence)
        hurts = harm(site, evidence)
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error" if hurts else "note",
            subjects=subjects(sites),
            message=f"{overflow_in_words(site)}; {hurts or 'nothing that matters was seen to come of it'}.",
            locations=site_locations([site]),
            measured={
                "passes": site.passes,
                "largest": site.largest,
                "share": site.share,
                "reached_error": site.reached_error,
                "loss_passes": site.loss_passes,
                "read_passes": site.read_passes,
            },
            prescriptions=ranked(
                [
                    (
                        "float32-op",
                        f"cast to float32 before {site.operation}{at(site.place)}, and back after it",
                    )
                ]
            ),
        )

    @classmethod
    def _swamped(cls, site: LossySum, severity: Severity, harm_done: str) -> Finding:
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=subjects([site]),
            message=f"{where(site)}: a sum formed term by term in {site.format} is off by "
            f"{percent(site.error)} of what it is in float64, {harm_done}.",
            locations=site_locations([site]),
            measured={
                "passes": site.passes,
                "error": site.error,
                "reached_error": site.reached_error,
            },
            prescriptions=ranked([("float32-op", f"keep the sum{at(site.place)} in float32")]),
        )

    @classmethod
    def _noise(cls, site: LossySum) -> Finding:
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning",
            subjects=subjects([site]),
            message=f"{where(site)}: a sum of logarithms formed term by term in {site.format} is off by "
            f"{number(site.nats)}, a factor of {number(math.exp(min(site.nats, 700.0)))} in what they are "
            "logarithms of; gradient goes through it.",
            locations=site_locations([site]),
            measured={"passes": site.nats_passes, "error": site.error, "nats": site.nats},
            prescriptions=ranked([("float32-op", f"keep the sum{at(site.place)} in float32")]),
        )


def _is_usual(passes: int, seen: Exactness) -> bool:
    """Tell whether something happens in half of the passes."""
    return passes >= MIN_PASSES and passes >= NOISE_SHARE * seen.passes
