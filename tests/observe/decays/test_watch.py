"""Decays are followed from the cast that rounds them to the tensors that are scaled by them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from precdoctor.doctor import Doctor
from precdoctor.evidence import RoundedDecay
from precdoctor.rules.coarse_random import CoarseRandom

BF16 = torch.bfloat16
Update = Callable[[Tensor, Tensor, Tensor], object]


def seen(make: Callable[[], Tensor], update: Update, steps: int = 3) -> tuple[RoundedDecay, ...]:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(probe=True) as doctor:
        decay, average = make(), torch.zeros(4, 4)
        for _ in range(steps):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                update(average, model.weight, decay)
    return doctor.evidence().decays


class Settings:
    decay = 0.9999


def by_default() -> Tensor:
    decay = Settings.decay
    torch.set_default_dtype(BF16)
    try:
        return torch.tensor(decay)
    finally:
        torch.set_default_dtype(torch.float32)


def buffer() -> nn.Module:
    module = nn.Module()
    module.register_buffer("decay", torch.tensor(0.9999))
    return module


def scaled(average: Tensor, weight: Tensor, decay: Tensor) -> None:
    average.mul_(decay)
    average += weight * (1 - decay)


def subtracted(average: Tensor, weight: Tensor, decay: Tensor) -> None:
    left = 1.0 - decay
    average.sub_(left * (average - weight))


def lerped(average: Tensor, weight: Tensor, decay: Tensor) -> None:
    average.lerp_(weight, (1 - decay).float())


def many(average: Tensor, weight: Tensor, decay: Tensor) -> None:
    torch._foreach_mul_([average, average[:2]], decay)


@pytest.mark.parametrize(("update", "lines"), [(scaled, 2), (subtracted, 1), (lerped, 1), (many, 1)])
def test_a_decay_that_a_cast_makes_1_is_found_where_it_is_used(update: Update, lines: int) -> None:
    found = seen(lambda: torch.tensor(0.9999).to(BF16), update)
    assert len(found) == lines
    for decay in found:
        assert (decay.format, decay.stored, decay.function) == ("bfloat16", 1.0, update.__name__)
        assert decay.steps == 2  # the probe sleeps after the third step
        assert decay.meant == pytest.approx(0.9999)
        assert decay.place is not None
        assert decay.place.function == "<lambda>"


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.full((), 0.9999, dtype=BF16),
        lambda: torch.empty((), dtype=BF16).fill_(0.9999),
        lambda: torch.empty((), dtype=BF16).copy_(torch.tensor(0.9999)),
        lambda: torch.tensor([0.9999]).half().float(),
        lambda: buffer().to(BF16).get_buffer("decay"),
        lambda: torch.tensor(0.9999, dtype=BF16),
        lambda: torch.tensor([1 - 1e-4], dtype=BF16),
        lambda: torch.as_tensor(Settings.decay, dtype=torch.half),
        lambda: torch.ones(2, dtype=BF16).new_tensor(0.9999),
        lambda: torch.ones(2, dtype=BF16).new_full((), 0.9999),
        by_default,
    ],
)
def test_ways_to_round_a_decay(make: Callable[[], Tensor]) -> None:
    assert [decay.stored for decay in seen(make, subtracted)] == [1.0]


def test_another_decay_is_told_by_what_it_leaves_to_1() -> None:
    (found,) = seen(lambda: torch.tensor(0.998).to(BF16), subtracted)
    assert (found.meant, found.stored) == (pytest.approx(0.998), 0.99609375)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor(0.9999),
        lambda: torch.tensor(0.95).to(BF16),
        lambda: torch.tensor(1.0).to(BF16),
        lambda: torch.tensor(0.1).to(BF16),
        lambda: torch.tensor(0.9999).to(BF16).fill_(0.5),
        lambda: torch.tensor(0.9999, dtype=torch.float32),
        lambda: torch.tensor(0.95, dtype=BF16),
        lambda: torch.tensor(1.0, dtype=BF16),
    ],
)
def test_others_are_left_alone(make: Callable[[], Tensor]) -> None:
    assert seen(make, subtracted) == ()


def test_one_that_nothing_is_scaled_by_is_left_alone() -> None:
    assert seen(lambda: torch.tensor(0.9999).to(BF16), lambda a, w, d: a.copy_(w) + (1 - d)) == ()


def discounted(discount: Tensor, rewards: Tensor) -> None:
    total = torch.zeros(rewards.shape[1])
    for reward in rewards.flip(0):
        total = reward + discount * total


def into_a_buffer(discount: Tensor, rewards: Tensor) -> None:
    returns = rewards.clone()
    for t in reversed(range(len(rewards) - 1)):
        returns[t] += discount * returns[t + 1]


def of_one_episode(discount: Tensor, rewards: Tensor) -> None:
    discounted(discount, rewards[:, :1])


def by_powers(discount: Tensor, rewards: Tensor) -> None:
    _ = (discount ** torch.arange(len(rewards)))[:, None] * rewards


@pytest.mark.parametrize("use", [discounted, into_a_buffer, of_one_episode, by_powers])
@pytest.mark.parametrize(
    ("dtype", "length", "ill"), [(BF16, 300, True), (BF16, 40, False), (None, 300, False)]
)
def test_a_discount_is_followed_through_the_sum_that_comes_back(
    use: Callable[[Tensor, Tensor], None], dtype: torch.dtype | None, length: int, ill: bool
) -> None:
    with Doctor(probe=True) as doctor:
        use(torch.tensor(0.999, dtype=dtype), torch.ones(length, 4))
    evidence = doctor.evidence()
    if dtype is not None:
        assert length - 2 <= max(decay.repeats for decay in evidence.decays) <= length
    found = CoarseRandom.criterion(evidence)
    assert [finding.severity for finding in found] == ["error"] * ill


def test_views_of_one_buffer_that_are_scaled_once_each_are_no_recurrence() -> None:
    with Doctor(probe=True) as doctor:
        factor, flat = torch.tensor(0.999, dtype=BF16), torch.ones(600, 2)
        for row in flat:
            row.mul_(factor)
    assert max(decay.repeats for decay in doctor.evidence().decays) == 1
