"""Where inf and NaN come from is told, and what becomes of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from precdoctor.evidence import NonFinite
from tests.observe.shadow.shadowing import layer, seen

HEAD = layer(8, 1)


def only(found: tuple[NonFinite, ...]) -> NonFinite:
    assert len(found) == 1, found
    return found[0]


def test_squares_that_overflow_and_become_zero_are_wrong_in_the_layer_that_follows() -> None:
    head = layer(8, 1).half()

    def normalize() -> Tensor:
        x = torch.full((4, 8), 300.0, dtype=torch.float16)
        mean_square = (x * x).mean(-1, keepdim=True)
        return head(x * torch.rsqrt(mean_square)).sum()

    site = only(seen(normalize).non_finite)
    assert (site.kind, site.operation, site.format, site.reduction) == ("overflow", "mul", "float16", True)
    assert site.largest == 90_000
    assert site.share == 1
    assert dict(site.reached)["layer"] == 3
    assert site.reached_error == pytest.approx(1, abs=1e-3)
    assert site.place is not None
    assert site.place.function == "normalize"
    assert site.graded is False


def test_a_few_rows_that_overflow_beside_others_are_wrong_in_the_layer_that_follows() -> None:
    head = layer(8, 1).half()

    def normalize() -> Tensor:
        x = torch.tensor([2.0, 3.0, 2.0, 2.5, 2000.0], dtype=torch.float16)[:, None].expand(5, 8)
        mean_square = (x * x).mean(-1, keepdim=True)  # 1 / 2000 is nothing beside 1 / 2
        return head(x * torch.rsqrt(mean_square)).sum()

    site = only(seen(normalize).non_finite)
    assert (site.kind, site.share) == ("overflow", 0.2)
    assert dict(site.reached)["layer"] == 3
    assert site.reached_error == pytest.approx(0.2**0.5, rel=0.01)


def test_the_sum_of_more_than_is_followed_overflows() -> None:
    many = torch.ones(1200, 1000, dtype=torch.float16)

    site = only(seen(lambda: many.sum().float()).non_finite)
    assert (site.kind, site.operation, site.reduction, site.largest) == ("overflow", "sum", True, 1_200_000)
    assert site.loss_passes == 3


def test_an_overflow_that_gives_the_right_limit_does_no_harm() -> None:
    def hyperbolic() -> Tensor:
        x = torch.linspace(-20, 20, 64, dtype=torch.float16)
        return HEAD((1 - 2 / (torch.exp(2 * x) + 1)).float().view(8, 8)).sum()

    site = only(seen(hyperbolic).non_finite)
    assert site.operation == "exp"
    assert "layer" not in dict(site.reached)


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16, torch.float32])
def test_two_masks_that_meet_are_a_mask_that_overflows(low: torch.dtype) -> None:
    lowest = torch.finfo(low).min

    def attend() -> Tensor:
        one, other = torch.eye(4, dtype=low) * lowest, torch.ones(4, 1, dtype=low) * lowest
        return torch.softmax(torch.randn(4, 4, dtype=low) + (one + other), -1).sum()

    site = only(seen(attend).non_finite)
    assert site.mask
    assert not site.nan_passes


def test_a_row_of_nothing_but_overflow_makes_nan_of_it_and_of_the_loss() -> None:
    def attend() -> Tensor:
        hidden = (torch.ones(4, 4) * -1e9).half()
        return torch.softmax(torch.randn(4, 4).half() + hidden, -1).float().sum()

    site = only(seen(attend).non_finite)
    assert site.mask
    assert site.operation == "_to_copy"
    assert (site.nan_passes, site.loss_passes) == (3, 3)


def test_infinities_that_are_meant_are_no_site_until_they_make_nan() -> None:
    scores, hidden = torch.randn(4, 4), torch.eye(4, dtype=torch.bool)

    def masked() -> Tensor:
        return scores.masked_fill(hidden, -math.inf).softmax(-1).sum()

    assert not seen(masked).non_finite

    def hidden_row() -> Tensor:
        rows = scores.masked_fill(torch.arange(4)[:, None] == 0, -math.inf).softmax(-1)
        return torch.nan_to_num(rows).sum()

    site = only(seen(hidden_row).non_finite)
    assert (site.kind, site.operation) == ("undefined", "_softmax")
    assert site.loss_passes == 0


def test_data_that_is_nan_is_no_site() -> None:
    data = torch.tensor([1.0, math.nan])
    assert not seen(lambda: (data * 2).sum()).non_finite


def test_the_logarithm_of_what_was_rounded_to_zero_is_an_underflow() -> None:
    def likelihood() -> Tensor:
        probability = torch.sigmoid(torch.tensor([-120.0, 2.0]))
        return probability.log().sum()

    site = only(seen(likelihood).non_finite)
    assert (site.kind, site.operation, site.share) == ("underflow", "log", 0.5)
    assert site.loss_passes == 3


def test_the_logarithm_of_zero_is_undefined() -> None:
    site = only(seen(lambda: torch.zeros(3).log().sum()).non_finite)
    assert site.kind == "undefined"


def test_memory_that_was_never_filled_says_nothing() -> None:
    def filled() -> Tensor:
        held = torch.empty(64)
        held.fill_(math.inf)
        reused = torch.empty_like(held)
        reused.copy_(torch.ones(64))
        return reused.sum()

    assert not seen(filled).non_finite


def test_a_norm_of_gradients_that_is_read_in_python() -> None:
    gradients = [torch.full((8,), 300.0, dtype=torch.float16) for _ in range(2)]

    def clip() -> None:
        total = sum(float((g**2).sum()) for g in gradients)
        assert total == math.inf

    with_loss = seen(lambda: clip() or torch.zeros(()))
    assert {s.read_passes for s in with_loss.non_finite} == {3}
    assert all(s.reduction for s in with_loss.non_finite)


def test_a_norm_of_gradients_that_overflows_reaches_what_the_optimizer_gets() -> None:
    from tests.observe.shadow.shadowing import place, shadowed

    weight = nn.Parameter(torch.zeros(8, dtype=torch.float16))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with shadowed() as watch:
        weight.grad = torch.full((8,), 300.0, dtype=torch.float16)
        total = torch.sqrt(sum(g.pow(2).sum() for g in [weight.grad]))
        weight.grad.mul_(1 / (total + 1e-4))
        assert not weight.grad.any()
        watch.step_begins(optimizer, 0)
    site = only(watch.evidence(place).non_finite)
    assert dict(site.reached)["gradient"] == 1
    assert site.place is not None
    assert site.place.function.endswith("what_the_optimizer_gets")


def test_what_is_written_over_is_finite_again() -> None:
    def clean() -> Tensor:
        x = torch.full((4,), 300.0, dtype=torch.float16)
        square = x * x
        square.fill_(1.0)
        return square.sum()

    assert only(seen(clean).non_finite).loss_passes == 0


def test_a_loss_that_is_not_finite_wakes_the_probe_a_few_times() -> None:
    from precdoctor.observe.probe.probe import OperationProbe

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    probe = OperationProbe([])
    probe.attach()
    made = 0

    def steps(until: int) -> None:
        nonlocal made
        while made < until:
            made += 1
            probe.step_begins(optimizer)
            probe.step_ended(made)

    try:
        steps(110)
        assert not probe.awake
        woken = []
        for _ in range(4):
            probe.rouse("a loss that is not finite")
            woken.append(probe.awake)
            steps(made + 4)
            assert not probe.awake
        assert woken == [True, True, True, False]
    finally:
        probe.detach()


@pytest.mark.parametrize("low", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_formats_of_8_bits_are_followed(low: torch.dtype) -> None:
    x = torch.randn(4, 8)
    assert seen(lambda: HEAD(x.to(low).float()).sum()).non_finite == ()
