"""Outcomes of trials, on evidence made by hand: a frozen norm beside what each cure could make of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from precdoctor.evidence import Evidence, Gradient, Quantizer, WindowedEdq
from precdoctor.trials import Trial, judge, judged_by, measure
from tests.rules.build import evidence, lost, norm, optimizer, parameter, updates, weight, with_bench

NORM = ("norm.weight",)
#: a loss that falls from 4 to 2, and one that ends half of that above it
FALLING = tuple((step, 4.0 - 0.02 * step) for step in range(100))
WORSE = tuple((step, 4.0 - 0.01 * step) for step in range(100))


def ill(**changes: Any) -> Evidence:
    return evidence(norm(), **{"losses": FALLING, **changes})


def healed(**changes: Any) -> Evidence:
    """Return a run whose norm moves as it was meant to."""
    at_one = weight(abs_median=1.0, mean_first=1.0, mean_last=1.0015)
    return evidence(norm(updates=updates(), weight=at_one), **{"losses": FALLING, **changes})


def float32(**changes: Any) -> Evidence:
    own = parameter("norm.weight", format="float32", weight=weight(mean_first=1.0, mean_last=1.0015))
    return evidence(own, **{"losses": FALLING, **changes})


def trial(**changes: Any) -> Trial:
    values: dict[str, Any] = {
        "remedy": "autocast",
        "label": "autocast",
        "rules": ("PD101",),
        "subjects": NORM,
    }
    return Trial(**{**values, **changes})


def judged(after: Evidence, before: Evidence | None = None, **changes: Any) -> Trial:
    distance = changes.pop("untreated_distance", None)
    before = ill() if before is None else before
    return judge(trial(**changes), after, before, float32(), untreated_distance=distance)


# ---------------------------------------------------------------------- cured


def test_is_cured_when_the_descent_arrives_and_goes_where_float32_goes() -> None:
    result = judged(healed(), travel_share=0.98, travel_distance=0.1)
    assert result.outcome == "cured"
    assert result.why == "EDQ 0.000 -> 1.000; travel 0.98 x float32's (distance 0.1)"
    assert (result.edq, result.found, result.steps) == (1.0, (), 100)


def test_is_cured_without_a_float32_run_to_compare_with() -> None:
    result = judge(trial(), healed(), ill())
    assert (result.outcome, result.travel_share) == ("cured", None)


def test_another_run_that_heals_only_helps() -> None:
    assert judged(healed(), travel_share=26.0, travel_distance=25.0).outcome == "helped"
    assert judged(healed(), travel_share=0.3, travel_distance=0.7).outcome == "helped"


def test_updates_stored_larger_than_meant_are_no_cure() -> None:
    assert judged(evidence(norm(updates=updates(edq=1.35)), losses=FALLING)).outcome == "helped"


def test_an_illness_of_the_future_does_not_dilute_the_numbers_of_the_frozen() -> None:
    before = evidence(norm(), parameter("matrix"), losses=FALLING)
    after = evidence(norm(updates=updates()), parameter("matrix"), losses=FALLING)
    both = ("norm.weight", "matrix")
    assert judged_by(both, before) == NORM
    assert judged(after, before, subjects=both).why.startswith("EDQ 0.000 -> 1.000")
    assert judged_by(("matrix",), before) == ("matrix",)


def whole(edq: float, window: int) -> WindowedEdq:
    return WindowedEdq(window=window, edq=edq, low=edq, high=edq)


@pytest.mark.parametrize(
    ("remedy", "is_random", "expected"),
    [
        ("stochastic-rounding", True, 0.86),  # right in the mean at every step
        ("kahan", False, 1.02),  # right over the run
        ("eps", False, 0.97),  # kept inside the optimizer: by net travel
    ],
)
def test_edq_of_optimizers_that_preserve_is_read_where_it_can_be(
    remedy: str, is_random: bool, expected: float
) -> None:
    seen = dataclasses.replace(lost(), edq=(whole(0.86, 1), whole(1.02, 0)), net_edq=0.97)
    after = with_bench(evidence(norm(updates=seen)), edq_small=1.0, random=is_random)
    assert measure(trial(remedy=remedy), after, NORM).edq == expected


def test_edq_is_pooled_by_the_energy_of_the_intended_updates() -> None:
    strong = dataclasses.replace(updates(edq=1.0).headroom_energy, counts=(3000.0,))
    both = evidence(
        norm("a", updates=updates(edq=0.2)), norm("b", updates=updates(edq=1.0, headroom_energy=strong))
    )
    assert measure(trial(), both, ("a", "b")).edq == pytest.approx((0.2 * 1000 + 1.0 * 3000) / 4000)


# ---------------------------------------------------------------------- helped, no effect


def test_helps_when_more_of_the_descent_arrives() -> None:
    after = evidence(norm(updates=updates(edq=0.5)), losses=FALLING)
    result = judged(after, travel_share=0.5, travel_distance=0.5, untreated_distance=1.0)
    assert result.outcome == "helped"
    assert "new: PD102" in result.why


def test_thawing_into_one_sided_drift_is_no_help_and_says_which_way() -> None:
    """Seen with a larger learning rate at 1.0: the mean falls where that of float32 rises."""
    drifting = updates(edq=0.2, lost_share=0.988, ups_applied=28, downs_applied=129)
    at_one = weight(abs_median=1.0, mean_first=1.0, mean_last=0.9938)
    after = evidence(norm(updates=drifting, weight=at_one), losses=FALLING)
    result = judged(after, travel_share=0.8, travel_distance=2.6, untreated_distance=1.0)
    assert result.outcome == "no effect"
    assert "28 ups against 129 downs; mean 0.9938 where float32 goes to 1.0015" in result.why


def test_has_no_effect_when_nothing_changes() -> None:
    result = judged(ill(), travel_share=0.0, travel_distance=1.0, untreated_distance=1.0)
    assert result.outcome == "no effect"
    assert "left: PD101" in result.why


def test_helps_when_fewer_are_ill() -> None:
    before = evidence(norm("a"), norm("b"), losses=FALLING)
    after = evidence(norm("a"), norm("b", updates=updates()), losses=FALLING)
    energy = dataclasses.replace(updates().headroom_energy, counts=(1e6,))
    after = dataclasses.replace(
        after,
        parameters=(norm("a", updates=lost(headroom_energy=energy)), after.parameters[1]),
    )
    result = judged(after, before, subjects=("a", "b"))
    assert result.edq is not None
    assert result.edq < 0.1
    assert result.outcome == "helped"


def test_what_nothing_asked_for_has_no_effect() -> None:
    result = judged(healed(), healed(), rules=(), subjects=())
    assert (result.outcome, result.why.split(";")[0]) == ("no effect", "nothing asked for it")


# ---------------------------------------------------------------------- harmed


def test_harms_when_the_loss_ends_clearly_worse() -> None:
    result = judged(healed(losses=WORSE))
    assert result.outcome == "harmed"
    assert result.loss_difference == pytest.approx(0.87)
    assert result.why.startswith("the loss ends 0.87 ± ")


def test_a_loss_worse_by_noise_or_by_a_trifle_is_no_harm() -> None:
    noisy = tuple((step, loss + 0.4 * (-1) ** step + 0.05) for step, loss in FALLING)
    slightly = tuple((step, loss + 0.01) for step, loss in FALLING)
    assert judged(healed(losses=noisy)).outcome == "cured"
    assert judged(healed(losses=slightly)).outcome == "cured"


def test_a_loss_that_ends_where_float32s_ends_is_no_harm() -> None:
    after = healed(losses=WORSE)
    there = judge(trial(), after, ill(), float32(losses=WORSE))
    assert there.outcome == "cured"
    assert there.loss_difference == pytest.approx(0.87)
    assert judge(trial(), after, ill()).outcome == "harmed"  # nothing to compare with


def test_harms_when_the_loss_is_no_longer_finite() -> None:
    broken = (*FALLING[:50], (50, float("nan")))
    result = judged(healed(losses=broken))
    assert result.outcome == "harmed"
    assert (result.loss_first, result.loss_last, result.loss_difference) == (None, None, None)
    assert judged(healed(losses=broken), ill(losses=broken)).outcome == "cured"  # it was so before


def test_harms_when_another_parameter_falls_ill() -> None:
    before = evidence(norm(), parameter("other"), losses=FALLING)
    after = evidence(norm(updates=updates()), norm("other"), losses=FALLING)
    result = judged(after, before)
    assert result.outcome == "harmed"
    assert result.why.startswith("PD101 in other")


# ---------------------------------------------------------------------- missing gradients, quantizers

#: a loss that a frozen weight holds at 3, and one that falls to 2 as float32's does
HELD = tuple((step, 3.0 + 1.0 * 0.9**step) for step in range(100))
FREED = tuple((step, 2.0 + 2.0 * 0.9**step) for step in range(100))
QUANTIZER = Quantizer(parameter="w", kind="quantizer", numel=64, format="float32", route="cut")
SEEN = {"probed": True, "optimizers": (optimizer(),)}


def severed(**changes: Any) -> Evidence:
    own = parameter("w", format="float32", updates=None, gradient=Gradient(absent=100))
    return evidence(own, **{"losses": HELD, "quantizers": (QUANTIZER,), **SEEN, **changes})


def connected(**changes: Any) -> Evidence:
    own = parameter("w", format="float32")
    passing = dataclasses.replace(QUANTIZER, route="open", gradient_density=1.0, gradient_cosine=1.0)
    return evidence(own, **{"losses": FREED, "quantizers": (passing,), **SEEN, **changes})


def of_quantizer(after: Evidence, **changes: Any) -> Trial:
    plain = evidence(parameter("w", format="float32"), losses=FREED, **SEEN)
    asked = trial(remedy="ste", label="ste", rules=("PD601",), subjects=("w",), **changes)
    return judge(asked, after, severed(), plain, untreated_distance=1.0)


def test_a_gradient_that_is_back_cures_when_weight_and_loss_go_where_float32_goes() -> None:
    result = of_quantizer(connected(), travel_share=0.98, travel_distance=0.2)
    assert result.outcome == "cured", result.why
    assert result.why == "loss 3 -> 2, in float32 2; travel 0.98 x float32's (distance 0.2)"


def test_a_gradient_that_is_back_only_helps_when_the_loss_stays_or_the_weight_rests() -> None:
    stays = tuple((step, loss - 0.2) for step, loss in HELD)
    assert of_quantizer(connected(losses=stays), travel_share=0.98, travel_distance=0.2).outcome == "helped"
    assert of_quantizer(connected(), travel_share=0.01, travel_distance=1.0).outcome == "helped"


def test_a_better_loss_helps_though_the_gradient_is_still_missing() -> None:
    result = of_quantizer(severed(losses=FREED), travel_share=0.0, travel_distance=1.0)
    assert result.outcome == "helped"
    assert "left: PD601" in result.why
    untouched = of_quantizer(severed(), travel_share=0.0, travel_distance=1.0)
    assert untouched.outcome == "no effect"


def test_a_loss_gap_that_is_noise_decides_nothing() -> None:
    noisy = tuple((step, loss + 0.3 * (-1) ** step) for step, loss in FREED)
    plain = evidence(parameter("w", format="float32"), losses=noisy, **SEEN)
    asked = trial(remedy="ste", rules=("PD601",), subjects=("w",), travel_share=1.0)
    before = severed(losses=tuple((step, loss + 0.05) for step, loss in FREED))
    assert judge(asked, connected(losses=before.losses), before, plain).outcome == "cured"


def test_does_not_call_cured_what_was_not_seen() -> None:
    result = of_quantizer(connected(probed=False, quantizers=(), losses=HELD), travel_share=1.0)
    assert result.outcome == "no effect"
    assert "what becomes of its weights outside the step was not seen" in result.why
    assert of_quantizer(connected(probed=False, quantizers=()), travel_share=1.0).outcome == "helped"


# ---------------------------------------------------------------------- does not apply, numbers


def test_does_not_apply_when_the_program_fails_under_it() -> None:
    result = judged(ill(), error="RuntimeError: dtypes differ")
    assert (result.outcome, result.error) == ("does not apply", "RuntimeError: dtypes differ")
    assert result.why == "the program fails under it: RuntimeError: dtypes differ"


def test_losses_of_one_step_are_averaged_and_compared_step_by_step() -> None:
    twice = tuple((step, loss + sign) for step, loss in FALLING for sign in (-0.5, 0.5))
    result = judged(healed(losses=twice))
    assert result.loss_difference == pytest.approx(0.0, abs=1e-12)
    assert result.loss_last == pytest.approx(4.0 - 0.02 * 87)


def test_measures_the_subjects_alone() -> None:
    both = evidence(norm(), parameter("other"), optimizers=(optimizer(),))
    result = measure(trial(), both, NORM)
    assert (result.ups, result.downs, result.lost_share, result.mean_last) == (0, 0, 1.0, 1.0)
    assert measure(trial(), both, ()).ups == 3200
