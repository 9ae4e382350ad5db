"""What a model predicts, seen where its loss is computed from logits: right, always the same, or fixed by
the current token.

A model whose inside does not learn still learns how often each class occurs, and, where its embedding
learns, what follows each token. Its accuracy stops at what these two give, while the loss falls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from precdoctor.evidence import Place, Predicted, Predictions
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.probe.operations import Operation
from precdoctor.observe.watch import is_plain

#: positions sampled of one loss; fewer where there are many classes, so that no more logits are compared
_POSITIONS, _LOGITS = 8192, 1 << 24
#: losses sampled in one step, and look-ups remembered in one forward pass
_LOSSES, _LOOKUPS = 16, 8
#: positions of one loss whose labels are kept for the ceiling
_LABELS = 1 << 17
#: share of neighbours one apart from which integers count positions and are no tokens
_COUNTING = 0.9

Integers = npt.NDArray[np.int64]


@dataclass(slots=True, eq=False)
class _Sample:
    """Some positions of one loss, on its device until they are counted."""

    step: int
    predictions: Tensor
    #: -1 where the loss ignores the position
    labels: Tensor
    losses: Tensor
    #: by look-up of the forward pass: the current tokens, and the share of neighbours one apart
    tokens: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Loss:
    """What is known of the loss of one line."""

    waiting: list[_Sample] = field(default_factory=list)
    steps: dict[int, Predicted] = field(default_factory=dict)
    #: current tokens (-1: not known) and labels of all steps
    tokens: list[Integers] = field(default_factory=list)
    labels: list[Integers] = field(default_factory=list)


class PredictionWatch:
    """Notes predictions, labels and current tokens; an instrument of the operation probe."""

    def __init__(self, code: UserCode) -> None:
        self._code = code
        #: integers that chose rows of a matrix in this forward pass
        self._lookups: list[Tensor] = []
        self._losses: dict[tuple[Spot | None, int], _Loss] = {}

    # ------------------------------------------------------------------ told by the probe

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at nothing: what is written over does not matter here."""

    def after(self, operation: Operation) -> None:
        """Note look-ups, and the losses that follow them in the same forward pass."""
        if operation.backward:
            self._lookups.clear()
        elif operation.graded:  # not an evaluation: other data, and no dropout
            if operation.name in ("aten::embedding", "aten::index"):
                self._note_lookup(operation.inputs)
            elif operation.name in ("aten::nll_loss_forward", "aten::nll_loss2d_forward"):
                self._note_loss(operation)

    def step_begins(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Look at nothing: operations know their step."""

    def fall_asleep(self) -> None:
        """Count what was sampled: this waits for the device."""
        self._lookups.clear()
        self.count()

    def _note_lookup(self, inputs: list[Tensor]) -> None:
        if len(inputs) != 2 or len(self._lookups) >= _LOOKUPS or not all(map(is_plain, inputs)):
            return
        table, indices = inputs
        integers = indices.dtype in (torch.int64, torch.int32)
        if table.dim() == 2 and table.is_floating_point() and integers and indices.dim():
            self._lookups.append(indices.detach())

    def _note_loss(self, operation: Operation) -> None:
        if len(operation.args) < 5:
            return
        scores, labels, _, _, ignored = operation.args
        if not (is_plain(scores) and is_plain(labels)) or scores.dim() < 2 or not labels.numel():
            return
        classes = int(scores.shape[1])
        key = self._code.innermost(operation.frame)[0], classes
        loss = self._losses.setdefault(key, _Loss())
        if sum(sample.step == operation.step for sample in loss.waiting) >= _LOSSES:
            return
        stride = _stride(labels.numel(), classes)
        flat = labels.detach().reshape(-1)[::stride]
        chosen = _rows(scores.detach(), stride)
        counted = flat != ignored
        own = chosen.gather(1, torch.where(counted, flat, 0).unsqueeze(1)).squeeze(1)
        loss.waiting.append(
            _Sample(
                step=operation.step,
                predictions=chosen.argmax(1),
                labels=torch.where(counted, flat, -1),
                losses=-own,
                tokens=[
                    (tokens.reshape(-1)[::stride], _counting(tokens))
                    for indices in self._lookups
                    if (tokens := _of_labels(indices, labels.numel())) is not None
                ],
            )
        )

    # ------------------------------------------------------------------ counting

    def count(self) -> None:
        """Turn samples into numbers and let go of them; those of one step belong together."""
        for loss in self._losses.values():
            waiting, loss.waiting = loss.waiting, []
            for step in dict.fromkeys(sample.step for sample in waiting):
                _count(loss, step, [sample for sample in waiting if sample.step == step])

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[Predictions, ...]:
        """Return what was counted, by the lines that compute a loss."""
        return tuple(
            _record(loss, place(spot), classes)
            for (spot, classes), loss in self._losses.items()
            if loss.steps
        )


def foretold(tokens: Integers, values: Integers) -> tuple[float | None, int]:
    """Return the share of values foretold by their token, and the number of positions that this rests on.

    A value is foretold when it is the commonest one at the other positions with the same token; it counts
    1/k where k values are equally common there. Positions whose token occurs once are left out.
    """
    if not len(tokens):
        return None, 0
    width = int(values.max()) + 1
    pairs, counts = np.unique(tokens * width + values, return_counts=True)
    order = np.lexsort((-counts, pairs // width))  # by token, the commonest value first
    token, counts = pairs[order] // width, counts[order]
    _, start, values_of = np.unique(token, return_index=True, return_counts=True)
    total = np.add.reduceat(counts, start)
    first = counts[start]
    second = np.where(values_of > 1, counts[np.minimum(start + 1, len(counts) - 1)], 0)
    # only the commonest value can be foretold, and only where it stays so without the position itself
    rivals = np.add.reduceat((counts == np.repeat(second, values_of)).astype(np.int64), start)
    credit = np.where(first - 1 > second, 1.0, np.where(first > second, 1 / (1 + rivals), 0.0))
    repeated = total > 1
    positions = int(total[repeated].sum())
    return (float((first * credit)[repeated].sum() / positions) if positions else None), positions


def _stride(positions: int, classes: int) -> int:
    """Return the distance of sampled positions: odd, or it would hit the same places of all sequences."""
    most = min(_POSITIONS, max(_LOGITS // classes, 1))
    return -(-positions // most) // 2 * 2 + 1


def _rows(scores: Tensor, stride: int) -> Tensor:
    """Return the scores of every ``stride``-th position, of shape (positions, classes)."""
    if scores.dim() == 2:
        return scores[::stride]
    scores = scores.flatten(2)
    index = torch.arange(0, scores.shape[0] * scores.shape[2], stride, device=scores.device)
    return scores[index // scores.shape[2], :, index % scores.shape[2]]


def _of_labels(indices: Tensor, labels: int) -> Tensor | None:
    """Return the integers that belong to the labels one by one; the last of each sequence may have none."""
    if indices.numel() == labels:
        return indices
    if indices.dim() > 1 and indices.numel() - indices.numel() // indices.shape[-1] == labels:
        return indices[..., :-1]
    return None


def _counting(tokens: Tensor) -> Tensor:
    """Return the share of neighbours one apart."""
    if tokens.shape[-1] < 2:
        return torch.zeros((), device=tokens.device)
    return (tokens[..., 1:] - tokens[..., :-1] == 1).float().mean()


def _count(loss: _Loss, step: int, samples: list[_Sample]) -> None:
    labels = _joined([s.labels for s in samples])
    kept = labels >= 0
    if step in loss.steps or not kept.any():
        return
    labels, predictions = labels[kept], _joined([s.predictions for s in samples])[kept]
    tokens = _joined([_current(s) for s in samples])[kept]
    known = tokens >= 0
    share, repeated = foretold(tokens[known], predictions[known])
    losses = torch.cat([s.losses.double() for s in samples]).cpu().numpy()[kept]
    loss.steps[step] = Predicted(
        step=step,
        positions=len(labels),
        repeated=repeated,
        accuracy=float((predictions == labels).mean()),
        loss=float(losses.mean()),
        top_prediction_share=_top(predictions),
        top_label_share=_top(labels),
        by_token=share,
    )
    if sum(map(len, loss.labels)) < _LABELS:
        loss.tokens.append(tokens)
        loss.labels.append(labels)


def _current(sample: _Sample) -> Tensor:
    """Return the current token of each position, -1 where it is not known.

    Of several look-ups, the one with most distinct integers is that of the tokens; those that count
    positions are not.
    """
    found = [tokens for tokens, counting in sample.tokens if float(counting) < _COUNTING]
    if not found:
        return torch.full_like(sample.labels, -1)
    return max(found, key=lambda tokens: int(torch.unique(tokens).numel()))


def _record(loss: _Loss, place: Place | None, classes: int) -> Predictions:
    tokens, labels = np.concatenate(loss.tokens), np.concatenate(loss.labels)
    return Predictions(
        place=place,
        classes=classes,
        steps=tuple(loss.steps[step] for step in sorted(loss.steps)),
        ceiling=foretold(tokens[tokens >= 0], labels[tokens >= 0])[0],
        majority=_top(labels),
    )


def _joined(tensors: list[Tensor]) -> Integers:
    return torch.cat([t.long() for t in tensors]).cpu().numpy()


def _top(values: Integers) -> float:
    return float(np.unique(values, return_counts=True)[1].max() / len(values))
