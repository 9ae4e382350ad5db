"""Differences that lose digits are found, with what reached what; sound arithmetic is left alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from precdoctor.evidence import Cancellation, Exactness
from precdoctor.observe.frames import UserCode
from precdoctor.observe.probe.probe import OperationProbe
from precdoctor.observe.shadow.digits import nats_off
from precdoctor.observe.shadow.watch import ShadowWatch
from tests.observe.shadow.shadowing import is_trained, layer, place, seen

HEAD = layer(4, 1)


def only(found: tuple[Cancellation, ...]) -> Cancellation:
    assert len(found) == 1, found
    return found[0]


def test_a_variance_far_from_zero() -> None:
    values = 1e4 + 0.1 * torch.randn(256, 4, generator=torch.Generator().manual_seed(0))

    def standardize() -> Tensor:
        mean = values.mean(0)
        variance = values.square().mean(0) - mean.square()
        return HEAD((values - mean) / (variance.clamp_min(0) + 1e-6).sqrt()).sum()

    site = only(seen(standardize).cancellations)
    assert (site.operation, site.format) == ("sub", "float32")
    assert site.error > 1
    assert site.error_before < 1e-6
    assert site.remaining == pytest.approx(1e-10, rel=0.2)
    assert dict(site.reached)["layer"] == 3


@pytest.mark.parametrize(
    ("function", "operation"),
    [(lambda x: torch.log(1 + x), "log"), (lambda x: torch.acos(1 - x), "acos"), (torch.log1p, "")],
    ids=["log", "acos", "log1p"],
)
def test_what_is_absorbed_by_1_is_missed_by_a_function_that_vanishes_there(
    function: Callable[[Tensor], Tensor], operation: str
) -> None:
    small = 1e-8 * (1 + torch.rand(32, 4, generator=torch.Generator().manual_seed(0)))

    found = seen(lambda: HEAD(1e4 * function(small)).sum()).cancellations
    assert [site.operation for site in found] == [operation] * bool(operation)
    for site in found:
        assert site.error_before < 1e-7
        assert site.error == pytest.approx(1, abs=0.01)
        assert dict(site.reached)["layer"] == 3


def test_the_logarithm_of_ordinary_numbers_is_sound() -> None:
    scores = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).bfloat16()

    def loss() -> Tensor:
        shares = scores.softmax(-1)
        return HEAD((shares.float() + 1e-6).log()).sum() - shares.log().mean()

    assert seen(loss).cancellations == ()


def test_one_less_an_exponential_in_bfloat16_goes_through_a_logarithm() -> None:
    log_probability = torch.full((8,), -1e-3, dtype=torch.bfloat16) / 3

    def odds() -> Tensor:
        rest = torch.maximum(1 - torch.exp(log_probability / 1.1), torch.tensor(1e-6))
        return (log_probability - rest.log()).mean()

    site = only(seen(odds).cancellations)
    assert site.operation == "rsub"
    assert site.source_format == "bfloat16"
    assert dict(site.reached)["logarithm"] == 3


def test_a_solution_of_equations_whose_matrix_was_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(64, 32, generator=generator) + 3
    inputs, target = torch.rand(64, 32, generator=generator) + 3, torch.randn(64, 1, generator=generator)

    def ridge() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gram = features.T @ features
        head = torch.linalg.solve(gram.float() + 1e-3 * torch.eye(32), features.T @ target)
        return (inputs @ head).square().mean()

    site = only(seen(ridge).cancellations)
    assert site.operation == "_linalg_solve_ex"
    assert site.source_format == "bfloat16"
    assert site.error > 1
    assert dict(site.reached)["loss"] == 3
    assert site.cause is not None
    assert site.place is not None
    assert site.cause.line < site.place.line


def test_log_probabilities_rounded_before_they_are_subtracted() -> None:
    teacher = torch.randn(32, 1000, generator=torch.Generator().manual_seed(0))
    student = teacher + 0.02 * torch.randn(32, 1000, generator=torch.Generator().manual_seed(1))

    def distill() -> Tensor:
        pair = [F.log_softmax(x.bfloat16(), -1) for x in (student, teacher)]
        return F.kl_div(*pair, log_target=True, reduction="batchmean")

    def in_float32() -> Tensor:
        pair = [F.log_softmax(x, -1) for x in (student, teacher)]
        return F.kl_div(*pair, log_target=True, reduction="batchmean")

    site = only(seen(distill).cancellations)
    assert site.source_format == "bfloat16"
    assert not seen(in_float32).cancellations


def test_knows_probabilities_that_are_cast_after_they_were_picked_out() -> None:
    scores = torch.randn(32, 500, generator=torch.Generator().manual_seed(0))
    picked = torch.randint(0, 500, (32, 1), generator=torch.Generator().manual_seed(1))

    def ratio() -> Tensor:
        old, new = (F.log_softmax(x, -1).gather(1, picked).bfloat16() for x in (scores, scores * 1.0001))
        return (new - old).exp().float().mean()

    def residual() -> Tensor:
        return (scores.bfloat16() - (scores * 1.0001).bfloat16()).float().square().mean()

    site = only(seen(ratio).cancellations)
    assert (site.source, site.source_format, site.probabilities) == ("_to_copy", "bfloat16", True)
    assert not only(seen(residual).cancellations).probabilities


def test_a_difference_that_goes_into_an_exponential_is_the_logarithm_of_a_ratio() -> None:
    action = torch.randn(32, 24, generator=torch.Generator().manual_seed(0))

    def density(mean: float, wanted: torch.dtype) -> Tensor:
        off = action.to(wanted) - mean
        return (-0.5 * off * off - 0.9).sum(-1)

    def ratio(mean: float, wanted: torch.dtype = torch.bfloat16) -> Tensor:
        return (density(mean, wanted) - density(0.0, wanted)).exp().float().mean()

    site = only(seen(lambda: ratio(1e-3)).cancellations)
    assert (site.source_format, site.probabilities, site.ratio) == ("bfloat16", False, True)
    assert site.error > 0.5
    assert not seen(lambda: ratio(1e-3, torch.float32)).cancellations
    assert not seen(lambda: ratio(0.0)).cancellations  # the same policy: 1 in exact arithmetic too


def healthy(act: object) -> Exactness:
    found = seen(act)  # type: ignore[arg-type]
    assert not any(site.reached for site in found.cancellations), found.cancellations
    return found


def test_scores_nearly_alike_make_sound_probabilities() -> None:
    queries, keys = (torch.randn(16, 32, generator=torch.Generator().manual_seed(n)) for n in (0, 1))

    def attend() -> Tensor:
        scores = 1.0 + 2e-4 * (queries @ keys.T)
        weights = (scores.bfloat16() - 1.0).exp().float()
        return (weights / weights.sum(-1, keepdim=True)).square().sum()

    site = only(seen(attend).cancellations)
    assert site.error > 0.5
    assert not site.ratio


def test_differences_of_exact_values_are_sound() -> None:
    one, other = torch.randn(64).bfloat16(), torch.randn(64).bfloat16()
    close = one * (1 + 2**-7)
    healthy(lambda: (one - close).float().square().sum() + (one - other).float().sum())


def test_what_is_zero_in_exact_arithmetic_is_no_cancellation() -> None:
    logits = torch.randn(16, 8, requires_grad=True)

    def straight_through() -> Tensor:
        soft = (logits * 1.3).softmax(-1)
        hard = F.one_hot(soft.argmax(-1), 8).float()
        return (HEAD((hard + soft - soft.detach()).view(-1, 4)) + (soft - soft.detach()).sum()).sum()

    assert not healthy(straight_through).cancellations


def test_residuals_of_a_model_in_bfloat16_are_not_judged() -> None:
    model, data = layer(16, 1).bfloat16(), torch.randn(64, 16).bfloat16()
    with torch.no_grad():
        target = model(data).float() + 1e-3 * torch.randn(64, 1)
    assert not healthy(lambda: (model(data).float() - target).square().mean()).cancellations


def test_a_loss_that_has_come_down_to_its_rounding_is_not_ill() -> None:
    count = iter(range(5))

    def converging() -> Tensor:
        offset = 1.0 if next(count) < 2 else 1e-3
        x = torch.linspace(1, 2, 64) / 3
        return ((x.bfloat16() * 1.1).float() - x * 1.1 - offset * (1 + 0 * x)).square().mean()

    assert not any(site.reached for site in seen(converging, passes=5).cancellations)


def test_shifting_by_the_maximum_and_by_the_mean_is_sound() -> None:
    x = 5 * torch.randn(32, 16).bfloat16()

    def normal() -> Tensor:
        shifted = (x * 1.1) - (x * 1.1).amax(-1, keepdim=True)
        return HEAD((shifted.exp() + (x / 3 - (x / 3).mean(-1, keepdim=True))).float().view(-1, 4)).sum()

    healthy(normal)


def test_a_sum_of_many_small_terms_swamps_them() -> None:
    def returns() -> Tensor:
        total = torch.zeros((), dtype=torch.bfloat16)
        for _ in range(600):
            total = total + torch.tensor(1.1, dtype=torch.bfloat16)
        return total.float()

    found = seen(returns)
    assert len(found.lossy_sums) == 1
    assert found.lossy_sums[0].error > 0.2
    assert dict(found.lossy_sums[0].reached)["loss"] == 3


def test_frequencies_and_positions_in_bfloat16_turn_phases() -> None:
    def embed(form: torch.dtype) -> Tensor:
        positions = torch.arange(768).to(form)
        rates = (10_000 ** (-torch.arange(0, 32, 2) / 32)).to(form)
        return (positions[:, None] * rates).cos().float().sum()

    found = seen(lambda: embed(torch.bfloat16))
    assert len(found.phases) == 1
    assert found.phases[0].share > 0.02
    assert found.phases[0].error_rad > 1
    assert found.phases[0].largest == pytest.approx(768, abs=1)
    assert not seen(lambda: embed(torch.float32)).phases
    assert math.isclose(found.phases[0].passes, 3)


def second_derivative(x: Tensor, h: float) -> Tensor:
    def u(x: Tensor) -> Tensor:
        return 1.3 * x * (1 - x) * HEAD(x.expand(-1, 4) * 0.1).square()

    return ((u(x + h) - 2 * u(x) + u(x - h)) / h**2).square().mean()


@pytest.mark.parametrize(("h", "steps"), [(1e-5, [0, 10, 11]), (0.2, [])])
def test_float32_is_followed_on_where_its_digits_cancel(h: float, steps: list[int]) -> None:
    watch = ShadowWatch(UserCode(), is_trained)
    probe = OperationProbe([watch])
    probe.attach()
    followed = []
    try:
        for step in (0, 10, 11):
            probe.step_ended(step)
            watch.losses([second_derivative(torch.linspace(0, 1, 64)[:, None], h)], step, None)
            followed += [step] if watch.evidence(place).cancellations else []
    finally:
        probe.detach()
    assert followed == steps
    if steps:
        assert dict(only(watch.evidence(place).cancellations).reached)["loss"] == 3


def evaluated(wanted: torch.dtype, *, model: bool = True) -> Exactness:
    """Return what is seen of a coefficient of determination, after ten steps, in one pass."""
    watch = ShadowWatch(UserCode(), is_trained)
    probe = OperationProbe([watch])
    probe.attach()
    try:
        probe.step_ended(10)
        generator = torch.Generator().manual_seed(0)
        total, squares, residual = torch.zeros(3, dtype=wanted).unbind()
        with torch.no_grad():
            for _ in range(8):
                x = torch.rand(64, 4, generator=generator)
                y = 1e5 + x.sum(1)
                guess = 1e5 + (HEAD(x) if model else x[:, :1])[:, 0]
                total += y.to(wanted).sum()
                squares += y.to(wanted).square().sum()
                residual += (y.to(wanted) - guess.to(wanted)).square().sum()
        spread = squares - total.square() / 512
        (1 - residual / spread).item()
        return watch.evidence(place)
    finally:
        probe.detach()


def test_float32_is_followed_where_a_model_is_evaluated() -> None:
    seen = evaluated(torch.float32)
    site = only(seen.cancellations)
    assert (site.operation, seen.evaluations, site.evaluations) == ("sub", 1, 1)
    assert dict(site.reached)["logarithm"] == 1
    assert site.reached_error > 0.5
    assert evaluated(torch.float64).cancellations == ()
    assert evaluated(torch.float32, model=False).cancellations == ()


def test_what_python_reads_in_an_evaluation_is_reached() -> None:
    def spread() -> None:
        x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            y = 1e5 + HEAD(x)
            (y.square().mean() - y.mean().square()).item()

    assert dict(only(seen(spread, passes=1).cancellations).reached) == {"read": 1}


def forward_recursion(wanted: torch.dtype, *, linear: bool = False) -> Exactness:
    """Return what is seen of 120 frames of 5 states; ``linear``: a plain sum of log-probabilities."""
    weight = torch.randn(120, 8, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def score() -> Tensor:
        emission = torch.log_softmax(weight, -1).to(wanted)
        alpha = emission[0]
        for frame in emission[1:]:
            if linear:
                alpha = alpha + torch.logsumexp(frame + frame, -1, keepdim=True)
            else:
                alpha = torch.logaddexp(alpha, alpha.roll(1, -1) - 0.5) + frame
        return -alpha.float().mean() / 120

    return seen(score, passes=2)


def test_a_recursion_of_log_sums_in_bfloat16_is_off_by_a_factor() -> None:
    (site,) = forward_recursion(torch.bfloat16).lossy_sums
    assert (site.operation, site.graded, site.nats_passes) == ("add", True, 2)
    assert 1 < site.nats < 50
    assert forward_recursion(torch.float32).lossy_sums == ()
    assert all(site.nats == 0 for site in forward_recursion(torch.bfloat16, linear=True).lossy_sums)


def test_what_is_as_good_as_zero_is_no_error_of_a_logarithm() -> None:
    exact = torch.tensor([[-100.0, -101.0, -1e4, -math.inf], [-1e4, -1e4, 2.0, -20.0]], dtype=torch.float64)
    off = torch.tensor([[0.25, 0.25, 16.0, 0.0], [30.0, 30.0, 0.25, 0.25]], dtype=torch.float64)
    assert nats_off(exact + off, exact) == 0.25
    assert nats_off(exact + 2, exact) == 2


def add_noise(form: torch.dtype, style: str) -> Exactness:
    """Return what is seen where noise is added by the timestep, from a schedule in some format."""
    kept = torch.cumprod(1 - torch.linspace(1e-2, 0.02**0.5, 1000).square(), 0)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(64, 4, generator=generator)

    def loss() -> Tensor:
        timesteps = torch.randint(0, 1000, (64,), generator=generator)
        if style == "flow":
            a = torch.linspace(0, 1, 1000).to(form)[timesteps][:, None]
            return HEAD(((1 - a) * clean + a).float()).sum()
        if style == "table":
            rest = (1 - kept.to(form)).sqrt()[timesteps]
        elif style == "looked up":
            rest = (1 - kept.to(form)[timesteps]) ** 0.5
        else:
            rest = (1 - kept[timesteps].to(form)).sqrt()
        return HEAD((rest[:, None] * clean).float()).sum()

    return seen(loss)


@pytest.mark.parametrize("style", ["table", "looked up", "cast"])
def test_a_noise_schedule_in_bfloat16_begins_without_noise(style: str) -> None:
    site = only(add_noise(torch.bfloat16, style).cancellations)
    assert dict(site.reached)["schedule"] == 3
    assert site.share == pytest.approx(0.016, abs=0.004)
    assert add_noise(torch.float32, style).cancellations == ()
    assert add_noise(torch.float16, style).cancellations == ()


def test_times_between_0_and_1_may_be_coarse() -> None:
    assert add_noise(torch.bfloat16, "flow").cancellations == ()
