from __future__ import annotations

import dataclasses

from precdoctor.evidence import Gradient, Place
from precdoctor.rules.frozen_parameter import FrozenParameter
from precdoctor.rules.swallowed_update import SwallowedUpdate
from tests.rules.build import CAST, LR, bench, evidence, lost, norm, optimizer, parameter, updates, weight
from tests.rules.build import with_bench as benched
from tests.rules.build import with_group as grouped

judge = FrozenParameter.criterion


def test_names_the_arithmetic_of_a_frozen_norm() -> None:
    (finding,) = judge(evidence(norm(), parameter()))
    assert finding.severity == "error"
    assert [s.name for s in finding.subjects] == ["norm.weight"]
    assert (
        "half-ULP 0.00195 down / 0.00391 up, intended update 2.9e-4 down: 2.8 bits short" in finding.message
    )
    assert "100 % of 6,400 observed updates lost" in finding.message
    assert finding.measured["half_ulp_down"] == 2**-9
    assert finding.measured["half_ulp_up"] == 2**-8


def test_puts_all_parameters_of_one_cast_into_one_finding() -> None:
    (finding,) = judge(evidence(*(norm(f"blocks.{i}.norm.weight") for i in range(12))))
    assert len(finding.subjects) == 12
    assert finding.message.startswith("12 parameters in bfloat16 are frozen")
    assert [(location.role, location.place) for location in finding.locations] == [
        ("cause", CAST),
        ("site", LR),
    ]


def test_keeps_parameters_of_different_casts_apart() -> None:
    other = dataclasses.replace(
        norm("b"), cast=dataclasses.replace(norm().cast, place=Place(file="b.py", line=1))
    )
    assert len(judge(evidence(norm("a"), other))) == 2


def test_blames_the_creation_where_nothing_was_cast() -> None:
    (finding,) = judge(evidence(norm(cast=None)))
    assert finding.locations[0].place.file == "model.py"


def test_is_silent_about_a_healthy_parameter() -> None:
    assert judge(evidence(parameter())) == []


def test_is_silent_about_float32_whatever_is_lost() -> None:
    assert judge(evidence(norm(format="float32"))) == []


def test_is_silent_about_negligible_updates() -> None:
    assert judge(evidence(norm(updates=lost(relative_rms=9e-7)))) == []
    assert judge(evidence(norm(updates=lost(relative_rms=1e-6))))


def test_is_silent_about_too_few_updates() -> None:
    moved = dataclasses.replace(norm(), weight=weight(moved_share=0.1))
    assert judge(evidence(dataclasses.replace(moved, updates=lost(intended=19)))) == []
    assert judge(evidence(norm(updates=lost(intended=7)))) == []
    assert judge(evidence(norm(updates=lost(intended=8)), optimizers=(optimizer(steps=19),))) == []
    few = evidence(norm(), optimizers=(optimizer(observed=2),))
    assert judge(few) == []


def test_is_silent_about_parameters_frozen_on_purpose() -> None:
    assert judge(evidence(norm(trainable=False))) == []
    assert judge(evidence(norm(optimizer=None, group=None))) == []


def test_is_silent_about_kahan_and_masters_inside_the_optimizer() -> None:
    healthy = evidence(norm(updates=lost(net_edq=0.98)))
    assert judge(benched(healthy, edq_small=1.009)) == []


def test_is_silent_where_the_travel_is_too_short_to_tell() -> None:
    assert judge(benched(evidence(norm(updates=lost(net_edq=None))), edq_small=1.0)) == []


def test_finds_a_frozen_parameter_of_an_optimizer_that_should_carry() -> None:
    assert judge(benched(evidence(norm(updates=lost(net_edq=0.01))), edq_small=1.0))


def test_is_silent_about_stochastic_rounding_inside_the_step() -> None:
    rounding = evidence(norm(updates=lost(replay="none", net_edq=0.0)))
    assert judge(benched(rounding, edq_small=0.99, rounds_inside=True, random=True)) == []


def test_leaves_what_still_moves_to_the_next_rule() -> None:
    moving = evidence(
        norm(updates=lost(edq=0.23, interval=(0.2, 0.26), lost_share=0.988, never_moved_share=0.39))
    )
    assert judge(moving) == []
    assert SwallowedUpdate.criterion(moving)


def test_one_moving_element_does_not_hide_a_stuck_tensor() -> None:
    assert judge(
        evidence(norm(updates=lost(edq=0.01, interval=(0.0, 0.03), lost_share=0.985, never_moved_share=0.98)))
    )


def test_judges_by_motion_where_the_optimizer_cannot_be_replayed() -> None:
    still = norm(updates=lost(replay="none", why_not="KeyError: 'lr'", edq=0.0, intended=0))
    (finding,) = judge(evidence(still))
    assert "AdamW could not be replayed (KeyError: 'lr')" in finding.message
    assert "never moved" in finding.message
    assert finding.measured["evidence"] == "motion"


def test_motion_alone_needs_gradients_and_a_learning_rate() -> None:
    still = norm(updates=lost(replay="none", intended=0))
    zeros = dataclasses.replace(still, gradient=Gradient(format="bfloat16", present=100, all_zero=100))
    assert judge(evidence(zeros)) == []
    assert judge(grouped(evidence(still), lr_first=0.0, lr_last=0.0, lr_max=0.0)) == []
    moved = dataclasses.replace(still, weight=weight(moved_share=0.01))
    assert judge(evidence(moved)) == []


def test_a_still_float32_parameter_needs_twenty_observed_steps_and_has_another_cause() -> None:
    still = norm(updates=lost(replay="none", intended=0), format="float32", cast=None)
    (finding,) = judge(evidence(still, optimizers=(optimizer(observed=20, benches=()),)))
    assert "float32 is not the reason" in finding.message
    assert judge(evidence(still, optimizers=(optimizer(observed=19, benches=()),))) == []


def test_does_not_believe_a_replay_that_misses_the_stored_results() -> None:
    wrong = updates(edq=0.0, interval=(0.0, 0.0), lost_share=1.0, never_moved_share=1.0, mismatch_share=0.1)
    assert judge(evidence(parameter(updates=wrong))) == []


def test_blames_the_optimizer_that_does_not_write() -> None:
    skipped = lost(bits=4.0, mismatch_share=1.0, relative_rms=0.01)
    (finding,) = judge(benched(evidence(norm(updates=skipped)), edq_large=0.0))
    assert "does not write them" in finding.message
    assert finding.locations[0].role == "cause"
    assert finding.locations[0].place == LR
    assert finding.prescriptions[0].remedy == "plain-optimizer"


def test_blames_the_optimizer_in_any_format() -> None:
    unwritten = evidence(norm(updates=lost(mismatch_share=1.0), format="float32", cast=None))
    silent = dataclasses.replace(
        unwritten, optimizers=(optimizer(benches=(bench(format="float32", edq_large=0.1),)),)
    )
    (finding,) = judge(silent)
    assert "bench" in finding.message


def test_never_recommends_a_larger_rate_or_smaller_weights_first() -> None:
    (finding,) = judge(evidence(norm()))
    order = [p.remedy for p in finding.prescriptions]
    assert order[:4] == ["autocast", "master-weights", "stochastic-rounding", "kahan"]
    assert order[4:] == ["group-lr", "reinit"]
    rate = next(p for p in finding.prescriptions if p.remedy == "group-lr")
    assert "not a cure" in rate.why
    assert [p.rank for p in finding.prescriptions] == [1, 2, 3, 4, 5, 6]


def test_says_that_a_sample_was_judged() -> None:
    (finding,) = judge(evidence(norm(shape=(4096,), watched=64)))
    assert "judged by a sample: 64 of 4,096 elements" in finding.message


def test_waits_for_the_peak_of_a_warm_up() -> None:
    warming = grouped(
        evidence(norm(), ended="stopped"),
        lr_first=1e-8,
        lr_last=3e-4,
        lr_max=3e-4,
        lr_future=((1, 3.1e-4), (1000, 1e-2)),
    )
    assert judge(warming) == []
    still_too_small = grouped(
        evidence(norm(), ended="stopped"), lr_first=1e-8, lr_last=3e-4, lr_max=3e-4, lr_future=((1000, 6e-4),)
    )
    assert judge(still_too_small)


def test_a_rising_rate_without_a_scheduler_may_rise_further() -> None:
    rising = {"lr_first": 1e-8, "lr_last": 3e-4, "lr_max": 3e-4}
    assert judge(grouped(evidence(norm(), ended="stopped"), **rising)) == []
    assert judge(grouped(evidence(norm(updates=lost(bits=-8.0)), ended="stopped"), **rising))
    assert judge(grouped(evidence(norm(), ended="finished"), **rising)), "a finished run has no future"
