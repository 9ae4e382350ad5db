"""PD501: an operation on finite values gives inf or NaN."""

from __future__ import annotations

import re
from typing import ClassVar

from precdoctor.evidence import Evidence
from precdoctor.evidence.exactness import NonFinite, NonFiniteGradient
from precdoctor.rules.exactness import (
    by_line,
    exactness,
    first_non_finite_step,
    foremost,
    harm,
    line_of,
    overflow_in_words,
    site_locations,
    spoils_loss,
    stays_non_finite,
    subjects,
    told_of_gradients,
    where,
)
from precdoctor.rules.finding import Finding, Severity, Subject
from precdoctor.rules.gradient_overflow import GradientOverflow
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.vanishing_epsilon import VanishingEpsilon
from precdoctor.rules.wording import at, count, number, percent, several

#: what torch says of values that are not finite, in an error
_NOT_FINITE = re.compile(r"\b(nan|inf|infinity|infinite)\b", re.IGNORECASE)
#: what changes the format and nothing else
_CASTS = ("_to_copy", "copy")


class NonFiniteOrigin(Rule):
    """The first operation whose arguments are finite and whose result is inf or NaN.

    ## What it means

    Inf and NaN spread to whatever is computed from them, so that the line at which a loss turns NaN is
    hardly ever the line to blame. Here it is: an exponential, a product or a quotient whose exact result
    lies beyond the format (overflow); a logarithm or a quotient of something that is zero only because it
    was rounded (underflow); or one that is not finite in exact arithmetic either (0/0, the softmax of a row
    that is masked altogether).

    ## Why it hurts

    NaN in the loss becomes NaN in every parameter at the next step. Worse is inf that is turned back into a
    number: 1/inf is 0, and the run goes on in silence with zeros in place of values.

    ## Criterion

    An error where the loss is inf or NaN because of it, to the end of the run or in at least 10 % of the
    forward passes seen; where NaN of it is left out of as many losses (`nanmean`), which are finite, and
    gets into their gradients all the same (0 x NaN is NaN), whether or not the step is then skipped; where
    finite results made of it are off by more than 10 % (norm of the difference to float64 over the norm of
    float64) and reach a layer, the loss, a gradient or a parameter, in at least two passes and 10 % of
    them; where Python reads it in half of them; where the script fails right after it for values that are
    not finite, or weights are not finite at the end and nothing else explains it. What is masked out later
    (`where`, `nan_to_num`) and does not come back as a gradient, and batches that the loop skips before
    `backward`, are none. Sums and squares are reported as PD503, masks as PD504.

    An error, too, where a cast makes inf of finite weights, statistics or other state that is then loaded
    into a module (`load_state_dict`), a warning where it is saved (`torch.save`) and not seen to be loaded.

    An error, too, where the loss is finite and an operation of the backward pass makes inf or NaN of finite
    gradients, with which an optimizer takes a step: the derivative of a root, a norm, a quotient or a
    logarithm at the edge of its range, whether or not `where` hides its value. Steps that a scaler or the
    loop leaves out are none.

    Where the loss stays inf or NaN and no origin was seen, the error says since when.

    ## Blind spots

    The steps in which the operation probe is awake (0, 1, 2, 5, 10, 15, ..., in evaluations, and where a
    script was run again to look at the step in which its loss turned inf or NaN). Gradients that overflow
    in float16 are the business of loss scaling (PD204).

    ## Remedies

    Compute this operation in float32; use the form that cannot overflow (`logsumexp`, `softplus`,
    `logsigmoid`, `binary_cross_entropy_with_logits`, `log_softmax`); add an eps that the format can hold.

    ## References

    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740 (which operations stay in
      float32)
    - Blanchard, Higham and Higham 2021, Accurately computing the log-sum-exp and softmax functions
    """

    id: ClassVar[str] = "PD501"
    name: ClassVar[str] = "non-finite-origin"
    example: ClassVar[str] = "non_finite_origin.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per operation, and one for a loss whose NaN comes from none that was seen."""
        sites = exactness(evidence).non_finite
        own = [site for site in sites if not (site.mask or _sums(site))]
        found = [cls._at(foremost(members, evidence), evidence) for members in by_line(own)]
        if not GradientOverflow.criterion(evidence):
            found += [cls._gradient(site) for site in exactness(evidence).non_finite_gradients if site.steps]
        since = unseen_since(evidence)
        if since is not None:
            found.append(cls._unseen(evidence, since))
        return [finding for finding in found if finding is not None]

    @classmethod
    def _at(cls, site: NonFinite, evidence: Evidence) -> Finding | None:
        severity: Severity = "error"
        hurts = harm(site, evidence) or _loaded(site) or _ruin(site, evidence)
        if not hurts:
            hurts = _saved(site)
            severity = "warning" if hurts else "note"
        if not hurts and (site.kind == "undefined" or line_of(site.place) in told_of_gradients(evidence)):
            return None
        what = {
            "overflow": overflow_in_words(site),
            "underflow": f"{where(site)}: {site.operation} gives inf or NaN ({percent(site.share)} of the "
            "result), because what it gets was rounded away before; in float64 it is finite",
            "undefined": f"{where(site)}: {site.operation} of finite values, or of infinities that are "
            "meant, is not finite in exact arithmetic either",
        }[site.kind]
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=subjects([site]),
            message=f"{what}; {hurts or 'nothing that matters was seen to come of it'}.",
            locations=site_locations([site], site.saved_at, site.loaded_at),
            measured={
                "passes": site.passes,
                "first_step": site.first_step,
                "largest": site.largest,
                "share": site.share,
                "loss_passes": site.loss_passes,
                "reached_error": site.reached_error,
            },
            prescriptions=ranked(
                [
                    ("stable-form", "a form that cannot leave the range: logsumexp, softplus, logits"),
                    ("float32-op", f"compute {site.operation}{at(site.place)} in float32"),
                ]
            ),
        )

    @classmethod
    def _gradient(cls, site: NonFiniteGradient) -> Finding:
        value = "NaN" if site.is_nan else "inf"
        derivative = site.node.rstrip("0123456789").removesuffix("Backward")
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=(Subject(kind="op", name=site.function or site.node),),
            message=(
                f"the loss is finite and its gradient is not: the derivative of {derivative}{at(site.place)} "
                f"gives {value} ({percent(site.share)} of the result), first after "
                f"{count(site.first_step, 'step')}; the optimizer takes a step with it, and weights that are "
                "NaN stay so."
            ),
            locations=locations([site.place]),
            measured={
                "first_step": site.first_step,
                "share": site.share,
                "passes": site.passes,
                "steps": site.steps,
            },
            prescriptions=ranked(
                [
                    (
                        "safe-argument",
                        "keep its argument away from where the derivative is infinite: sqrt(x + eps), a "
                        "clamp, torch.where before the operation; after it, 0 x inf is NaN all the same",
                    ),
                ]
            ),
        )

    @classmethod
    def _unseen(cls, evidence: Evidence, step: int) -> Finding:
        value = evidence.losses[-1][1]
        place = evidence.backward.place if evidence.backward is not None else None
        ill = [p for p in evidence.parameters if p.weight is not None and p.weight.non_finite]
        weights = f"; {count(len(ill), 'parameter')} hold inf or NaN" if ill else ""
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=tuple(Subject(kind="parameter", name=p.name) for p in ill)
            or (Subject(kind="op", name="backward"),),
            message=f"the loss is {number(value)} after {count(step, 'step')} and stays so; the operation "
            f"that made it was not seen{weights}.",
            locations=locations([], [place]),
            measured={"first_step": step},
            prescriptions=ranked(
                [("look-earlier", f"look at what leads to that step: precdoctor scan --look-at {step}")]
            ),
        )


def _saved(site: NonFinite) -> str:
    """Return in words that what a cast has made infinite is kept in a checkpoint; empty where it is not."""
    cast = site.kind == "overflow" and site.operation in _CASTS
    return f"it is saved{at(site.saved_at)}" if cast and site.saved_at is not None else ""


def _loaded(site: NonFinite) -> str:
    """Return in words that what a cast has made infinite is loaded into a module; empty where it is not."""
    if site.kind != "overflow" or site.operation not in _CASTS or site.loaded_at is None:
        return ""
    loaded = f"it is loaded into a module{at(site.loaded_at)}"
    return f"{_saved(site)}, and {loaded}" if site.saved_at is not None else loaded


def _ruin(site: NonFinite, evidence: Evidence) -> str:
    """Return in words what a site has ended in, where nothing else explains that; empty for nothing."""
    run, seen = evidence.run, exactness(evidence)
    # weights that a step has made NaN show in the next forward pass
    if run.ended == "failed" and site.last_step >= run.steps - 1 and _NOT_FINITE.search(run.error):
        return f"the script failed right after it ({run.error})"
    ill = [p.name for p in evidence.parameters if p.weight is not None and p.weight.non_finite]
    explained = any(harm(other, evidence) for other in seen.non_finite) or any(
        gradient.steps for gradient in seen.non_finite_gradients
    )
    if not ill or explained or site.kind == "undefined" or _is_explained_elsewhere(evidence):
        return ""
    return f"at the end {several(ill)} {'hold' if len(ill) > 1 else 'holds'} inf or NaN"


def _is_explained_elsewhere(evidence: Evidence) -> bool:
    """Tell whether weights that are not finite are explained by another rule."""
    return any(rule.criterion(evidence) for rule in (VanishingEpsilon, GradientOverflow))


def _sums(site: NonFinite) -> bool:
    return site.kind == "overflow" and site.reduction


def _explains(site: NonFinite, evidence: Evidence) -> bool:
    """Tell whether a site, of this rule or another, is where the loss's NaN comes from, or may be."""
    return spoils_loss(site, evidence) or site.kind != "undefined"


def unseen_since(evidence: Evidence) -> int | None:
    """Return the steps made before a loss that stays inf or NaN for no reason that was seen, else None."""
    if not stays_non_finite(evidence):
        return None
    if any(_explains(site, evidence) for site in exactness(evidence).non_finite):
        return None
    if any(site.steps for site in exactness(evidence).non_finite_gradients):
        return None
    if _is_explained_elsewhere(evidence):
        return None
    return first_non_finite_step(evidence)
