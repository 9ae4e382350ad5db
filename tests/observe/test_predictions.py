"""What models predict, seen at their losses, against slow twins and models whose answer is known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from precdoctor.doctor import Doctor
from precdoctor.evidence import Predictions
from precdoctor.observe import predictions
from precdoctor.observe.frames import UserCode
from precdoctor.observe.predictions import PredictionWatch, foretold
from precdoctor.observe.probe.operations import Operation
from tests.observe.steps.test_syncs import Waits
from tests.reference import predictions as reference

TOKENS = 11


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=40))
def test_foretold_agrees_with_the_slow_twin(pairs: list[tuple[int, int]]) -> None:
    tokens, values = [t for t, _ in pairs], [v for _, v in pairs]
    share, positions = foretold(np.array(tokens, dtype=np.int64), np.array(values, dtype=np.int64))
    expected, expected_positions = reference.foretold(tokens, values)
    assert positions == expected_positions
    assert share == pytest.approx(expected)


def test_a_pair_does_not_count_itself() -> None:
    tokens = np.array([1, 1, 2, 2, 3])
    assert foretold(tokens, np.array([5, 6, 7, 8, 9])) == (0.0, 4)
    assert foretold(tokens, np.array([5, 5, 7, 7, 9])) == (1.0, 4)


class Net(nn.Module):
    """Predicts from the current token alone, or also from the one before."""

    def __init__(self, looks_back: bool = False, positions: bool = False) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(TOKENS, 16), nn.Linear(16, TOKENS)
        self.position = nn.Embedding(32, 16) if positions else None
        self.looks_back = looks_back

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        if self.position is not None:
            hidden = hidden + 0 * self.position(torch.arange(tokens.shape[1]).expand_as(tokens))
        if self.looks_back:
            hidden = hidden + 3 * hidden.roll(1, 1)
        out: Tensor = self.head(hidden)
        return out


def flat(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def trained(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor] = flat,
    steps: int = 4,
    batches: int = 1,
    seen: list[tuple[Tensor, Tensor, Tensor]] | None = None,
) -> tuple[Predictions, ...]:
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Doctor(probe=True) as doctor:
        for _ in range(steps):
            for _ in range(batches):
                tokens, labels = torch.randint(TOKENS, (2, 8, 12))
                logits = model(tokens)
                loss(logits, labels).backward()
                if seen is not None:
                    seen.append((tokens, labels, logits.argmax(-1)))
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                loss(model(tokens), labels)  # an evaluation is not counted
    evidence = doctor.evidence()
    assert evidence.run.limits == ()
    return evidence.predictions


def test_counts_what_is_right_and_what_is_commonest() -> None:
    torch.manual_seed(0)
    seen: list[Any] = []
    (found,) = trained(Net(looks_back=True), seen=seen)
    assert found.classes == TOKENS
    assert [s.step for s in found.steps] == [0, 1, 2]
    for step, (tokens, labels, predicted) in zip(found.steps, seen, strict=False):
        assert step.positions == 96
        assert step.accuracy == pytest.approx(float((labels == predicted).float().mean()))
        assert step.top_label_share == float(labels.flatten().bincount().max()) / 96
        assert step.top_prediction_share == float(predicted.flatten().bincount().max()) / 96
        share, repeated = reference.foretold(tokens.flatten().tolist(), predicted.flatten().tolist())
        assert step.by_token == pytest.approx(share)
        assert step.repeated == repeated
    labels = torch.cat([labels.flatten() for _, labels, _ in seen[:3]])
    assert found.majority == float(labels.bincount().max()) / len(labels)
    tokens = torch.cat([tokens.flatten() for tokens, _, _ in seen[:3]])
    assert found.ceiling == pytest.approx(reference.foretold(tokens.tolist(), labels.tolist())[0])


def test_tells_the_current_token_from_its_context() -> None:
    torch.manual_seed(0)
    (bound,) = trained(Net())
    (free,) = trained(Net(looks_back=True))
    assert all(s.by_token == 1 for s in bound.steps)
    assert all(s.by_token is not None and s.by_token < 0.6 for s in free.steps)


def test_takes_tokens_for_tokens_and_not_positions() -> None:
    torch.manual_seed(0)
    (found,) = trained(Net(positions=True))
    assert all(s.by_token == 1 for s in found.steps)


def shifted(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].reshape(-1, TOKENS), labels[:, 1:].reshape(-1))


def channels(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), labels)


@pytest.mark.parametrize("loss", [shifted, channels])
def test_knows_the_tokens_in_other_layouts(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    (found,) = trained(Net(), loss)
    assert all(s.by_token == 1 and s.positions == (88 if loss is shifted else 96) for s in found.steps)


def test_puts_the_micro_batches_of_a_step_together() -> None:
    torch.manual_seed(0)
    (found,) = trained(Net(), batches=3)
    assert [s.positions for s in found.steps] == [288] * 3
    assert all(s.by_token == 1 for s in found.steps)


def test_leaves_out_what_the_loss_ignores() -> None:
    def half(logits: Tensor, labels: Tensor) -> Tensor:
        labels = labels.clone()
        labels[:, ::2] = -100
        return flat(logits, labels)

    torch.manual_seed(0)
    (found,) = trained(Net(), half)
    assert [s.positions for s in found.steps] == [48] * 3


def test_samples_large_losses_with_an_odd_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "_POSITIONS", 25)
    torch.manual_seed(0)
    (found,) = trained(Net())
    assert [s.positions for s in found.steps] == [20] * 3  # every fifth of 96
    assert all(s.by_token == 1 for s in found.steps)


def test_a_classifier_has_no_tokens() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(probe=True) as doctor:
        for _ in range(4):
            F.cross_entropy(model(torch.randn(50, 6)), torch.randint(3, (50,))).backward()
            optimizer.step()
    (found,) = doctor.evidence().predictions
    assert found.ceiling is None
    assert all(s.by_token is None and s.repeated == 0 and s.positions == 50 for s in found.steps)


def test_keeps_the_losses_of_several_lines_apart() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(probe=True) as doctor:
        for _ in range(4):
            out = model(torch.randn(20, 6))
            one = F.cross_entropy(out[:, :3], torch.randint(3, (20,)))
            two = F.cross_entropy(out[:, 3:], torch.randint(4, (20,)))
            (one + two).backward()
            optimizer.step()
    assert sorted(p.classes for p in doctor.evidence().predictions) == [3, 4]


def operation(func: Any, *args: Any) -> Operation:
    out = func(*args)
    return Operation(func, args, {}, out, step=0, backward=False, graded=True, frame=sys._getframe())


@pytest.mark.parametrize("dim", [2, 3])
def test_waits_for_nothing_until_it_counts(dim: int) -> None:
    tokens, labels = torch.randint(TOKENS, (2, 4, 12))
    scores = torch.randn(4, TOKENS, 12).log_softmax(1)
    ops = torch.ops.aten
    if dim == 2:
        args = (scores.movedim(1, 2).flatten(0, 1), labels.flatten(), None, 1, -100)
        loss = operation(ops.nll_loss_forward.default, *args)
    else:
        args = (scores.unsqueeze(2), labels.unsqueeze(1), None, 1, -100)
        loss = operation(ops.nll_loss2d_forward.default, *args)
    lookup = operation(ops.embedding.default, torch.randn(TOKENS, 5), tokens)
    watch = PredictionWatch(UserCode())
    with Waits(host_scalars=False) as waits:
        watch.after(lookup)
        watch.after(loss)
    assert not waits.found
    watch.fall_asleep()
    (found,) = watch.evidence(lambda _: None)
    assert found.steps[0].positions == 48
    assert found.steps[0].accuracy == pytest.approx(float((scores.argmax(1) == labels).float().mean()))
    assert found.steps[0].loss == pytest.approx(float(F.nll_loss(scores, labels)), rel=1e-6)
    assert found.steps[0].by_token is not None
