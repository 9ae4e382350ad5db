"""PD606: accuracy stays where it can get without what does not learn, while the loss falls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from precdoctor.evidence import Evidence, Place, Predicted, Predictions
from precdoctor.rules.descent import frozen_parameters
from precdoctor.rules.finding import Finding, Location, Prescription, Subject
from precdoctor.rules.gradients import with_zero_gradient, without_gradient
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.quantized import quantized, severed_as
from precdoctor.rules.reading import cause_of_format, locations, optimizer_of
from precdoctor.rules.rule import Rule
from precdoctor.rules.stale_quantized_weight import is_stale
from precdoctor.rules.wording import at, count, number, percent, several

#: share of the predictions that the current token foretells, from which they are fixed by it. In evaluation a
#: broken model has 0.987, a healthy one 0.44 to 0.75; in training passes, where dropout of 0.1 takes part,
#: 0.84 to 0.93 and 0.2 to 0.6 from step 300 on, but up to 0.80 at steps 100 to 200
FIXED = 0.8
#: the same where no weight is known to be at rest: nothing else speaks for it
FIXED_ALONE = 0.95
#: accuracy may differ from that of the commonest class by so much, which is predicted at so many positions
MAJORITY_WITHIN, ONE_CLASS = 0.01, 0.9
#: share of the trainable weights that do not learn, from which they may be the reason
MIN_STILL = 0.2
#: optimizer steps from which a net is not simply young, with and without weights at rest
MIN_STEPS_SEEN, MIN_STEPS_ALONE = 100, 300
#: part of the loss that it must have lost meanwhile: it learns something
MIN_FALL = 0.02
#: standard errors of an accuracy within which two are the same
ERRORS = 2.0

Kind = Literal["context-free", "majority"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Predictions of several steps together; shares as in `Predicted`."""

    first_step: int
    last_step: int
    positions: int
    accuracy: float
    loss: float
    top_prediction_share: float
    top_label_share: float
    by_token: float | None

    @property
    def variance(self) -> float:
        """Return the sampling variance of the accuracy."""
        return self.accuracy * (1 - self.accuracy) / self.positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau:
    """Accuracy that does not rise, in the third and in the second half of the run seen."""

    kind: Kind
    earlier: Window
    later: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Still:
    """A trainable weight that does not learn."""

    name: str
    numel: int
    reason: Literal["severed", "stale", "no gradient", "frozen"]
    place: Place | None


class ContextFreePlateau(Rule):
    """Accuracy stays at what the current token alone can give while the loss falls: little else is trained.

    ## What it means

    Seen from the loss's own logits and labels, the model predicts the same after a token whatever came
    before it, and is right about as often as the commonest successor of each token is: the bigram ceiling. Or
    it always predicts the commonest class. Embedding, norms or biases learn these two by themselves;
    whatever should bring the context in is not trained.

    ## Why it hurts

    The loss falls for thousands of steps, since these frequencies are learned ever better, and the accuracy
    looks like a small model's. In a published four-bit experiment it was 24.1 % at all five evaluations,
    between the bigram ceilings of such texts (23.7 to 28.5 %), while the loss fell from 8.5 to 7.0: 61 % of
    the parameters had no gradient.

    ## Criterion

    Predictions are sampled in the forward passes that the operation probe sees. In the last half of the steps
    seen, 80 % or more of the predictions of tokens that occur more than once are the commonest one at the
    other places of their token (0.84 to 0.93 under dropout in the broken model, 0.2 to 0.6 in healthy ones at
    the same steps); the accuracy is no higher than the share of labels that are foretold in the same way, and
    than it was in the quarter before, both within two standard errors; and the loss fell by 2 % or more in
    between. Or else one class makes up 90 % of the predictions, with an accuracy within one point of its
    share. A healthy young net does the same for a while (0.92 was measured), so this is a warning only after
    100 steps and with 20 % or more of the trainable weights of the optimizers seen not to learn: without
    gradient, or with zeros only (PD201, PD202), cut off by a quantizer or not used since (PD601, PD602), or
    frozen (PD101). Otherwise it is a note, from 300 steps and with 95 % of the predictions fixed.

    ## Blind spots

    Needs a cross entropy of torch with class labels; fused losses that never hold the logits are not seen.
    Current tokens are known where integers as many as the labels chose rows of a matrix in the same forward
    pass. The share is an underestimate for small batches. A model that is meant to see one token only
    (a bigram model) is a note. Too short a run shows nothing.

    ## Remedies

    Those of the weights at rest: a straight-through estimator for a quantizer that passes no gradient, the
    parameter itself instead of a detached copy, float32 weights for frozen ones. More training does not help.

    ## References

    - Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons, arXiv 1308.3432
    - Jurafsky and Martin, Speech and Language Processing, chapter 3 (n-gram models)
    """

    id: ClassVar[str] = "PD606"
    name: ClassVar[str] = "context-free-plateau"
    example: ClassVar[str] = "context_free_plateau.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per loss whose accuracy stays on such a plateau."""
        still = still_weights(evidence)
        share = still_share(evidence, still)
        found = []
        for predictions in evidence.predictions:
            ill = share >= MIN_STILL
            plateau = plateau_of(predictions, FIXED if ill else FIXED_ALONE)
            least = MIN_STEPS_SEEN if ill else MIN_STEPS_ALONE
            if plateau is not None and plateau.later.last_step >= least:
                found.append(cls._finding(predictions, plateau, still if ill else (), share))
        return found

    @classmethod
    def _finding(
        cls, predictions: Predictions, plateau: Plateau, still: Sequence[Still], share: float
    ) -> Finding:
        earlier, later = plateau.earlier, plateau.later
        names = [weight.name for weight in still]
        text = (
            f"{_what(predictions, plateau)}. At steps {later.first_step:,} to {later.last_step:,} "
            f"{percent(later.accuracy)} are right, {percent(earlier.accuracy)} at steps "
            f"{earlier.first_step:,} to {earlier.last_step:,}, while the loss fell from "
            f"{number(earlier.loss)} to {number(later.loss)}"
        )
        if still:
            text += f". {percent(share)} of the trainable weights do not learn: {several(names)}"
        else:
            text += ". No weight was seen not to learn: the net may be young, or meant to see no more"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning" if still else "note",
            subjects=tuple(Subject(kind="parameter", name=name) for name in names)
            or (Subject(kind="op", name="loss"),),
            message=text + ".",
            locations=_locations(predictions, still),
            measured={
                "kind": plateau.kind,
                "accuracy": later.accuracy,
                "accuracy_before": earlier.accuracy,
                "bigram_ceiling": predictions.ceiling,
                "majority_share": predictions.majority,
                "by_token_share": later.by_token,
                "top_prediction_share": later.top_prediction_share,
                "loss": later.loss,
                "loss_before": earlier.loss,
                "positions": later.positions,
                "still_share": share,
                "weights": len(still),
                "elements": sum(weight.numel for weight in still),
            },
            prescriptions=_cures(still),
        )


def plateau_of(predictions: Predictions, fixed: float) -> Plateau | None:
    """Return the plateau that the accuracy stays on; None where it rises, or lies higher."""
    last = predictions.steps[-1].step if predictions.steps else 0
    later = _window(s for s in predictions.steps if s.step > last / 2)
    earlier = _window(s for s in predictions.steps if last / 4 <= s.step <= last / 2)
    if later is None or earlier is None or later.loss > (1 - MIN_FALL) * earlier.loss:
        return None
    if later.accuracy - earlier.accuracy > ERRORS * math.sqrt(earlier.variance + later.variance):
        return None
    kind: Kind | None = None
    near = abs(later.accuracy - later.top_label_share) < MAJORITY_WITHIN
    if near and later.top_prediction_share > ONE_CLASS:
        kind = "majority"
    elif later.by_token is not None and later.by_token >= fixed and predictions.ceiling is not None:
        below = [w.accuracy <= predictions.ceiling + ERRORS * math.sqrt(w.variance) for w in (earlier, later)]
        kind = "context-free" if all(below) else None
    return Plateau(kind=kind, earlier=earlier, later=later) if kind is not None else None


def still_weights(evidence: Evidence) -> list[Still]:
    """Return the trainable weights of optimizers that do not learn, the largest first."""
    found: dict[str, Still] = {}

    def add(
        name: str,
        numel: int,
        reason: Literal["severed", "stale", "no gradient", "frozen"],
        place: Place | None,
    ) -> None:
        found.setdefault(name, Still(name=name, numel=numel, reason=reason, place=place))

    for item in quantized(evidence):
        quantizer = item.quantizer
        place = quantizer.place or quantizer.rounding
        drawn = quantizer.kind == "quantizer" and quantizer.carries_gradient and not quantizer.was_trained
        if severed_as(item) or (quantizer.route == "buffer" and drawn):
            add(quantizer.parameter, quantizer.numel, "severed", place)
        elif is_stale(item):
            add(quantizer.parameter, quantizer.numel, "stale", place)
    for parameter in (*without_gradient(evidence), *with_zero_gradient(evidence)):
        if parameter.used is not False:  # an unused head is none that should learn
            add(parameter.name, parameter.numel, "no gradient", parameter.created)
    for frozen in frozen_parameters(evidence):
        add(frozen.parameter.name, frozen.parameter.numel, "frozen", cause_of_format(frozen.parameter))
    return sorted(found.values(), key=lambda weight: -weight.numel)


def still_share(evidence: Evidence, still: Iterable[Still]) -> float:
    """Return which share of the elements that optimizers should train do not learn."""
    trained = {
        p.name: p.numel
        for p in evidence.parameters
        if p.trainable and p.used is not False and optimizer_of(evidence, p) is not None
    }
    at_rest = {weight.name: weight.numel for weight in still}
    return sum(at_rest.values()) / max(sum((trained | at_rest).values()), 1)


def _window(steps: Iterable[Predicted]) -> Window | None:
    seen = list(steps)
    positions, repeated = sum(s.positions for s in seen), sum(s.repeated for s in seen)
    if not positions:
        return None

    def mean(values: Iterable[float]) -> float:
        return sum(v * s.positions for v, s in zip(values, seen, strict=True)) / positions

    return Window(
        first_step=seen[0].step,
        last_step=seen[-1].step,
        positions=positions,
        accuracy=mean(s.accuracy for s in seen),
        loss=mean(s.loss for s in seen),
        top_prediction_share=mean(s.top_prediction_share for s in seen),
        top_label_share=mean(s.top_label_share for s in seen),
        by_token=sum((s.by_token or 0.0) * s.repeated for s in seen) / repeated if repeated else None,
    )


def _what(predictions: Predictions, plateau: Plateau) -> str:
    later = plateau.later
    if plateau.kind == "majority":
        return (
            f"{percent(later.top_prediction_share)} of the predictions{at(predictions.place)} are one class, "
            f"and the commonest label has a share of {percent(later.top_label_share)}"
        )
    return (
        f"The predictions{at(predictions.place)} are fixed by the current token: "
        f"{percent(later.by_token or 0)} are the commonest one after the same token elsewhere, and the "
        f"accuracy is no higher than the {percent(predictions.ceiling or 0)} that it can give alone"
    )


def _locations(predictions: Predictions, still: Sequence[Still]) -> tuple[Location, ...]:
    causes = [weight.place for weight in still if weight.reason != "no gradient"]
    sites = [weight.place for weight in still if weight.reason == "no gradient"]
    return locations(causes, [predictions.place, *sites])


def _cures(still: Sequence[Still]) -> tuple[Prescription, ...]:
    reasons = {
        "severed": ("ste", "use w + (Q(w) - w).detach() in the quantizer"),
        "stale": ("refresh-cache", "quantize in every forward pass"),
        "no gradient": ("reconnect", "use the parameters themselves in the forward, not detached copies"),
        "frozen": ("autocast", "float32 weights under torch.autocast"),
    }
    elements = {reason: sum(w.numel for w in still if w.reason == reason) for reason in reasons}
    order = sorted((r for r in reasons if elements[r]), key=lambda r: -elements[r])
    return ranked(
        [(reasons[r][0], f"{reasons[r][1]}: {count(elements[r], 'element')} then learn") for r in order]
    )
