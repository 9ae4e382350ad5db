"""Steps that go by a difference without digits are told from what is only read, compared or printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from precdoctor.evidence import Cancellation
from tests.observe.shadow.shadowing import place, shadowed

EPS, RATE, STEPS = 4e-3, 1e-4, 60


class Search:
    """Weights that are trained without gradients, the loss of which is of some format."""

    def __init__(self, form: torch.dtype = torch.bfloat16) -> None:
        self.form, self.generator = form, torch.Generator().manual_seed(0)
        self.data = torch.randn(64, 8, generator=self.generator)
        self.target = self.data @ torch.randn(8, 4, generator=self.generator)
        self.weight = torch.zeros(8, 4)
        self.history: list[float] = []

    def loss(self) -> Tensor:
        return (self.data @ self.weight - self.target).to(self.form).square().mean()

    def number(self) -> float:
        return self.loss().item()

    def shift(self, along: Tensor, scale: float) -> None:
        self.weight.add_(along, alpha=scale)

    def direction(self) -> Tensor:
        return torch.randn(8, 4, generator=self.generator)


def reads_the_difference(run: Search) -> None:
    along = run.direction()
    run.shift(along, EPS)
    up = run.loss()
    run.shift(along, -2 * EPS)
    down = run.loss()
    run.shift(along, EPS)
    slope = (up - down).item() / (2 * EPS)
    run.shift(along, -RATE * max(-4.0, min(4.0, slope)))


def reads_both(run: Search) -> None:
    along = run.direction()
    run.shift(along, EPS)
    up = run.number()
    run.shift(along, -2 * EPS)
    slope = (up - run.number()) / (2 * EPS)
    run.weight += EPS * along
    run.weight -= RATE * slope * along


def reads_none(run: Search) -> None:
    along = run.direction()
    run.shift(along, EPS)
    up = run.loss()
    run.shift(along, -2 * EPS)
    slope = (up - run.loss()) / (2 * EPS)
    run.weight = run.weight + EPS * along - RATE * slope * along


def forgets_the_sign(run: Search) -> None:
    along = run.direction()
    before = run.loss()
    run.shift(along, EPS)
    run.history.append((before - run.loss()).item())
    run.shift(along, -EPS if before.isnan() else RATE)


def descends(run: Search) -> None:
    before = run.number()
    run.shift(run.data.T @ (run.data @ run.weight - run.target), -1e-5)
    run.history.append(before - run.number())


def waits(run: Search) -> None:
    before = run.loss()
    run.shift(run.data.T @ (run.data @ run.weight - run.target), -1e-5 if len(run.history) < 30 else -1e-6)
    if (before - run.loss()).item() < EPS:
        run.history.append(0.0)


def found(step: Callable[[Search], None], form: torch.dtype = torch.bfloat16) -> tuple[Cancellation, ...]:
    run = Search(form)
    with shadowed() as watch:
        for _ in range(STEPS):
            step(run)
    return watch.evidence(place).cancellations


def steered(sites: Iterable[Cancellation]) -> list[Cancellation]:
    return [site for site in sites if site.steered]


@pytest.mark.parametrize(
    ("step", "line"),
    [(reads_the_difference, "shift"), (reads_both, "reads_both"), (reads_none, "reads_none")],
)
def test_steps_that_go_by_a_difference_of_losses_are_seen(step: Callable[[Search], None], line: str) -> None:
    (site,) = steered(found(step))
    assert site.steered >= 8
    assert site.error > 0.5
    assert site.source_format == "bfloat16"
    assert site.steered_at is not None
    assert site.steered_at.function == line


@pytest.mark.parametrize("step", [reads_the_difference, reads_both, reads_none])
def test_a_difference_in_float32_has_its_digits(step: Callable[[Search], None]) -> None:
    assert steered(found(step, torch.float32)) == []


@pytest.mark.parametrize("step", [forgets_the_sign, descends, waits])
def test_what_is_logged_or_waited_for_steers_nothing(step: Callable[[Search], None]) -> None:
    assert steered(found(step)) == []


def test_how_far_a_loss_has_come_is_told_from_other_differences() -> None:
    (site,) = found(waits)
    assert site.repeated

    def spread(run: Search) -> None:
        values = (100 + run.data).to(run.form)
        (values.square().mean() - values.mean().square()).item()

    assert not any(site.repeated for site in found(spread))
