"""What was seen of a model's predictions where its loss is computed from logits and labels."""

from __future__ import annotations

from dataclasses import dataclass

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """The predictions of one step, over a sample of its positions; those that the loss ignores left out."""

    #: optimizer steps made before
    step: int
    #: positions, and those of them whose current token occurs more than once among them
    positions: int
    repeated: int = 0
    #: share of the predictions (the largest logit) that equal the label
    accuracy: float = 0.0
    #: mean negative log-likelihood of the labels, nats
    loss: float = 0.0
    #: shares of the commonest prediction and of the commonest label
    top_prediction_share: float = 0.0
    top_label_share: float = 0.0
    #: share of the predictions at repeated positions that are foretold by the current token: equal to the
    #: commonest one at the other positions with that token. None where there are none
    by_token: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """The predictions behind one loss of the program, in training passes."""

    #: the user's line that computes the loss
    place: Place | None
    #: number of classes, such as the tokens of a vocabulary
    classes: int
    steps: tuple[Predicted, ...] = ()
    #: share of the labels that are foretold in the same way, all steps together: what a model can reach that
    #: knows the current token alone. None where no tokens were seen, or none occurs twice
    ceiling: float | None = None
    #: share of the labels that are the commonest one, all steps together
    majority: float = 0.0
