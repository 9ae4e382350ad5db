"""How a batch falls into samples: the loss of each is that of the sample alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from precdoctor.evaluation import (
    EvaluationError,
    batch_size,
    cast_floating,
    forward,
    resized,
    rows,
    sample_losses,
    take,
)

CPU = torch.device("cpu")


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.linear(x) * scale[:, None]}


class Total(nn.Module):
    """Its output is a number for the whole batch: it can't be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).square().mean()


def never(_: Any) -> Any:
    raise AssertionError("the output could have been cut")


def test_a_mean_loss_is_taken_of_each_sample_alone() -> None:
    torch.manual_seed(0)
    model, loss = nn.Linear(4, 3), nn.CrossEntropyLoss()
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
    with torch.no_grad():
        found = sample_losses(loss, model(x), (x, y), name="t", again=never)
        alone = [loss(model(x[i : i + 1]), y[i : i + 1]).item() for i in range(5)]
    assert found == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("shape", [(), (6,)])
def test_a_loss_per_sample_is_taken_as_it_is(shape: tuple[int, ...]) -> None:
    x = torch.randn(4, *shape)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square()

    found = sample_losses(loss, x, (x, torch.zeros(4, *shape)), name="t", again=never)
    assert found == pytest.approx(x.square().reshape(4, -1).mean(1).tolist())


def test_a_mapping_gives_keywords_and_is_its_own_target() -> None:
    model = Keyword()
    batch = {"x": torch.randn(3, 4), "scale": torch.tensor([1.0, 2.0, 3.0])}
    with torch.no_grad():
        output = forward(model, batch)
        found = sample_losses(lambda o, b: (o["logits"] / b["scale"][:, None]).square().mean(), output, batch,
                              name="t", again=never)  # fmt: skip
        assert found == pytest.approx(model.linear(batch["x"]).square().mean(1).tolist(), rel=1e-5)


def test_an_output_that_can_not_be_cut_is_computed_anew() -> None:
    torch.manual_seed(0)
    model, batch = Total(), (torch.randn(3, 4), torch.zeros(3))
    with torch.no_grad():
        found = sample_losses(lambda o, _: o, model(batch[0]), batch, name="t",
                              again=lambda one: forward(model, one))  # fmt: skip
        assert found == pytest.approx([model(batch[0][i : i + 1]).item() for i in range(3)])


def test_reads_no_more_than_it_is_asked_for_and_cuts_the_last() -> None:
    seen = []

    def endless() -> Any:
        while True:
            seen.append(1)
            yield torch.zeros(4, 2), torch.zeros(4)

    found = list(rows(endless(), 10, "t", CPU))
    assert [batch_size(batch) for batch in found] == [4, 4, 2]
    assert len(seen) == 3


def test_a_batch_is_cut_or_repeated() -> None:
    batch = (torch.arange(3), {"a": torch.arange(3) * 10})
    assert resized(batch, 5)[0].tolist() == [0, 1, 2, 0, 1]
    assert resized(batch, 2)[1]["a"].tolist() == [0, 10]
    assert take(batch, 1, 2)[0].tolist() == [1]


def test_only_floating_tensors_are_cast() -> None:
    cast = cast_floating((torch.zeros(1), torch.zeros(1, dtype=torch.long), "text"), torch.bfloat16)
    assert cast[0].dtype == torch.bfloat16
    assert cast[1].dtype == torch.long


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ([5], "a batch is a int"),
        ([([1, 2], 3)], "holds a list where a tensor belongs"),
        ([("text", torch.zeros(1))], "holds a str where a tensor belongs"),
        ([(torch.zeros(1),)], r"it must be \(inputs, target\)"),
        ([{}], "mapping without tensors"),
        ([{"x": [1.0]}], "mapping without tensors"),
        ([{3: torch.zeros(1)}], "its keys the names of the model's arguments"),
    ],
)
def test_one_line_says_what_is_wrong_with_a_batch(batches: Any, told: str) -> None:
    with pytest.raises(EvaluationError, match=told):
        list(rows(batches, 3, "t", CPU))


def test_an_error_while_reading_is_one_line() -> None:
    def broken() -> Any:
        yield torch.zeros(1, 2)
        raise KeyError("column")

    with pytest.raises(EvaluationError, match="t: reading a batch raised KeyError: 'column'"):
        list(rows(broken(), 9, "t", CPU))


@pytest.mark.parametrize("value", [None, "3", torch.tensor(2), torch.zeros(0)])
def test_a_loss_that_is_no_number_is_one_line(value: Any) -> None:
    with pytest.raises(EvaluationError, match="it must return a number"):
        sample_losses(lambda *_: value, torch.zeros(2), torch.zeros(2), name="t", again=never)


def test_a_loss_that_raises_is_one_line() -> None:
    with pytest.raises(EvaluationError, match=r"loss\(output, target\) raised ValueError: .*size"):
        sample_losses(
            nn.CrossEntropyLoss(),
            torch.zeros(2, 3),
            (torch.zeros(2, 3), torch.zeros(4, dtype=torch.long)),
            name="t",
            again=never,
        )
