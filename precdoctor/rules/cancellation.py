"""PD506: a difference of nearly equal numbers, of which few correct digits are left."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Evidence
from precdoctor.evidence import exactness as records
from precdoctor.rules.exactness import (
    ERROR,
    MIN_PASSES,
    NOISE_SHARE,
    ends,
    exactness,
    in_words,
    site_locations,
    subjects,
    where,
)
from precdoctor.rules.finding import Finding, Severity
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import format_named
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, number, percent

#: error of a difference, before a factorization that fails, from which it is to blame
FAILED_ERROR = 0.3
#: share of the evaluations seen in which a difference has to do harm: one may be all that there are
EVALUATIONS_SHARE = 0.5
#: times in a row that what scales a tensor has to go by a difference
MIN_STEERED = 8
_CASTS = ("_to_copy", "copy")


class Cancellation(Rule):
    """A difference of nearly equal numbers keeps few correct digits, and what is made of it is wrong.

    ## What it means

    Subtraction is exact where its arguments are close, and that is the trouble: what they have in common
    goes, and what is left are the errors that they came with. E[x^2] - E[x]^2 at a mean of 300 and a
    deviation of 0.02 is 4e-4 between two numbers near 90,000, whose spacing in float32 is 0.008. a^2 - 2ab
    + b^2, 1 - exp(x) for small x, 1 - cos, the difference of two log-probabilities in bfloat16, and the
    solution of equations whose matrix was rounded are of the same kind. So are functions that are zero at 1
    and get what 1 has absorbed: log(1 + x) for small x, the arc cosine of a small angle's cosine.

    ## Why it hurts

    A variance comes out as 0, or a thousand times too large, and everything divided by it follows. A term
    of the loss is noise, and so are steps without gradients that go by the difference of two losses in 16
    bits, most of which are exactly zero. Nothing is inf and nothing warns.

    ## Criterion

    The sum, difference, logarithm, arc cosine, solution or factorization is off by more than 10 % of what
    it is in float64 (norm of the difference over norm), or more than 30 % of its elements by half their
    value, and its arguments are off by less than an eighth of that: it is here that the digits go. And the
    damage is seen to reach a layer, the loss (one not yet down to 1 % of what it was), a gradient, a
    parameter, a choice of elements (neighbours, an order, the largest: more than half of what is chosen is
    off by 10 % in its exact value), or goes through a logarithm or a reciprocal, in at least two forward
    passes and 10 % of those seen; one pass is enough, in code without gradient, where a model is evaluated
    in it, what is reached (or read by Python, except the difference of two numbers that another line has
    made: how far a loss has come) is off by more than 50 %, and it is so in half of the evaluations. A
    quotient by the difference that is subtracted from 1, as in a score (R2), counts there as it is. A
    warning where a single difference, without gradient, scales what is added to tensors, as in steps of
    methods that need none, eight times or more. Where Python reads it (or two numbers, one after the other,
    of which it may take the difference), a number that tensors are scaled with tells: it is zero whenever
    the difference is, and else of its sign, or always of the other. An error where what it reaches is off
    by more than 50 %, else a warning. A warning, too, for a difference of probabilities or their
    logarithms, or one that an exponential makes a ratio of (off by 2 %), formed in 16 bits or rounded to
    them, that gradient goes through and that is off by more than 50 % in half of the passes; and where the
    script fails in a factorization just after. Of a schedule, which is a table of 32 numbers or more that
    rises or falls all along, 1 % of the elements off by half their value are enough, in c - a of what is
    looked up in it (or of all of it) in 16 bits, where a root, a logarithm or a quotient of that is taken:
    the first timesteps of a noise schedule get no noise. In one of torch's derivatives it is a note: where
    the problem itself is ill-conditioned, as a system of equations may be, other arithmetic does not help.
    Exact counts what layers return: the rounding of mixed precision inside the model is not judged. Results
    that are zero but for the rounding of float64 are none.

    ## Blind spots

    Forward passes, and of backward passes the user's own functions and hooks (torch's derivatives with
    `--probe shadow` only; no sums that are written in place), in the steps in which the operation probe is
    awake; values that never were below float32 in the first three steps, in three evaluations of a model,
    and on from where digits of such were seen to cancel. Tensors of over a million elements are not
    followed. What cancels inside one operation is seen by its result. A number that Python has read is not
    followed, and known by zeros and signs alone.

    ## Remedies

    Subtract first: (x - mean)^2, (a - b)^2, `expm1`, `log1p`, `logsigmoid`. Keep what is subtracted in
    float32 (log-probabilities), or float64 (sums over a data set, Welford's update). Leave autocast for
    linear algebra.

    ## References

    - Higham 2002, Accuracy and Stability of Numerical Algorithms, sections 1.7 (cancellation) and 1.9
      (variance)
    - Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance
    """

    id: ClassVar[str] = "PD506"
    name: ClassVar[str] = "cancellation"
    example: ClassVar[str] = "cancellation.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per difference."""
        seen = exactness(evidence)
        found = []
        for site in seen.cancellations:
            reached = ends(site, seen) or _ends_of_evaluation(site, seen)
            if reached:
                grave: Severity = "error" if site.reached_error > ERROR else "warning"
                if site.derivative:
                    grave = "note"  # it may be the problem that is ill-conditioned, not the arithmetic
                found.append(cls._at(site, grave, f"that reaches {in_words(reached)}{at(site.reached_at)}"))
            elif site.steered >= MIN_STEERED:
                times = count(site.steered, "time")
                harm = f"what is added to tensors{at(site.steered_at)} is scaled with that ({times} seen)"
                found.append(cls._at(site, "warning", harm))
            elif _is_noise(site, seen):
                found.append(cls._at(site, "warning", "gradient goes through what is noise"))
            elif _fails(site, evidence):
                found.append(cls._at(site, "warning", f"the script fails there ({evidence.run.error})"))
        return found

    @classmethod
    def _at(cls, site: records.Cancellation, severity: Severity, harm: str) -> Finding:
        source = f"{site.source.lstrip('_')} in {site.source_format}{at(site.cause)}"
        if site.error > site.share or site.error > ERROR:
            lost = f"is off by {_times(site.error)} of its exact value"
        else:
            lost = f"has {percent(site.share)} of its elements off by more than half their value"
        which = "the derivative of " if site.derivative else ""
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=subjects([site]),
            message=f"{which}{where(site)}: digits cancel, the result {lost}; it is "
            f"{number(site.remaining)} of the arguments' size, which are off by {number(site.error_before)} "
            f"from {source}; {harm}.",
            locations=site_locations([site]),
            measured={
                "passes": site.passes,
                "error_before": site.error_before,
                "error": site.error,
                "share": site.share,
                "remaining": site.remaining,
                "reached_error": site.reached_error,
            },
            prescriptions=ranked(_cures(site)),
        )


def _times(error: float) -> str:
    return percent(error) if error < 10 else f"{number(error)} times"


def _cures(site: records.Cancellation) -> list[tuple[str, str]]:
    form = format_named(site.source_format)
    wide = "float64" if form is not None and form.bits >= 32 else "float32"
    line = at(site.cause or site.place)
    what = f"compute {site.source.lstrip('_') or 'its arguments'}{line} in {wide}"
    if site.source in _CASTS:
        what = f"leave what is rounded to {site.source_format}{line} in {wide}"
    cures = [(f"{wide}-op", what)]
    return cures if site.repeated or site.steered else [("subtract-first", _first(site)), *cures]


def _first(site: records.Cancellation) -> str:
    if site.operation.startswith("log"):
        return "keep what is small apart from the 1: log1p(x)"
    if site.operation.startswith("acos"):
        return "take the angle from a sine or a chord, which are small with it: 2 asin(|a - b| / 2), atan2"
    return "subtract before squaring or taking exponentials: (x - mean)^2, (a - b)^2, expm1"


def _ends_of_evaluation(site: records.Cancellation, seen: records.Exactness) -> list[str]:
    """Return what a difference that no gradient goes through reached in enough evaluations of a model."""
    often = site.evaluations > 0 and site.evaluations >= EVALUATIONS_SHARE * seen.evaluations
    if site.graded or not often or site.reached_error <= ERROR:
        return []
    # how far a loss has come since, for a log or for early stopping, may be told as coarsely as the loss
    return [where for where, _ in site.reached if where != "read" or not site.repeated]


def _is_noise(site: records.Cancellation, seen: records.Exactness) -> bool:
    narrow = (site.probabilities or site.ratio) and site.source_format in ("float16", "bfloat16")
    often = site.passes >= MIN_PASSES and site.passes >= NOISE_SHARE * seen.passes
    return narrow and site.graded and often and site.error > ERROR


def _fails(site: records.Cancellation, evidence: Evidence) -> bool:
    run = evidence.run
    failed = run.ended == "failed" and "LinAlgError" in run.error
    return failed and site.last_step >= run.steps and max(site.error, site.share) > FAILED_ERROR
