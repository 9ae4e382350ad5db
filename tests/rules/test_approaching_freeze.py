from __future__ import annotations

import dataclasses
import math

import pytest

from precdoctor.evidence import Evidence
from precdoctor.rules.approaching_freeze import ApproachingFreeze, forecast
from precdoctor.rules.reading import stepped
from tests.rules.build import evidence, parameter, updates
from tests.rules.build import with_bench as benched
from tests.rules.build import with_group as grouped

judge = ApproachingFreeze.criterion
#: linear to zero over 1,000 steps
LINEAR = tuple((offset, 3e-4 * (1 - offset / 1000)) for offset in range(10, 1001, 10))


def scheduled(
    future: tuple[tuple[int, float], ...] = LINEAR, bits: float = 1.5, ended: str = "stopped"
) -> Evidence:
    given = evidence(parameter(updates=updates(bits=bits)), ended=ended)
    return grouped(given, lr_first=3.1e-4, lr_future=future)


def test_says_the_step_from_which_updates_will_be_lost() -> None:
    (finding,) = judge(scheduled())
    assert finding.severity == "warning"
    # 1.5 to 2 bits of headroom are gone below 2**-1.75 = 0.3 of the rate: step 100 + 700
    assert 780 <= finding.measured["freeze_step"] <= 840  # type: ignore[operator]
    assert "healthy now and will lose more than half of the descent from about step" in finding.message


def test_is_a_note_when_only_the_last_steps_are_lost() -> None:
    (finding,) = judge(scheduled(bits=4.5))
    assert finding.severity == "note"


def test_a_finished_run_has_no_future() -> None:
    assert judge(scheduled(ended="finished")) == []
    assert judge(scheduled(ended="failed")) == []


def test_a_rate_of_zero_is_no_freeze() -> None:
    assert judge(scheduled(((10, 3e-4), (20, 0.0), (1000, 0.0)))) == []


def test_is_silent_when_the_rate_stays() -> None:
    assert judge(scheduled(((10, 3e-4), (10000, 2.9e-4)))) == []


def test_leaves_what_is_ill_now_to_the_other_rules() -> None:
    ill = evidence(parameter(updates=updates(edq=0.5)), ended="stopped")
    assert judge(grouped(ill, lr_first=3.1e-4, lr_future=LINEAR)) == []


def test_is_silent_about_optimizers_that_carry_and_about_float32() -> None:
    assert judge(benched(scheduled(), edq_small=1.0)) == []
    wide = evidence(parameter(format="float32"), ended="stopped")
    assert judge(grouped(wide, lr_first=3.1e-4, lr_future=LINEAR)) == []


def test_a_cosine_ends_where_it_turns_up_again() -> None:
    cosine = tuple((n, 1.5e-4 * (1 + math.cos(math.pi * n / 1000))) for n in range(20, 20000, 20))
    (finding,) = judge(scheduled(cosine))
    assert finding.severity == "warning"
    assert 0.3 < finding.measured["lost_future_share"] < 0.5  # type: ignore[operator]


def test_a_schedule_that_stays_at_a_floor_ends_there() -> None:
    floor = (*LINEAR[:90], *((offset, 3e-5) for offset in range(1000, 20000, 500)))
    (finding,) = judge(scheduled(floor))
    assert finding.severity == "warning"


def test_a_schedule_without_an_end_is_a_note() -> None:
    halved = tuple((n, 3e-4 * 0.5 ** (n // 150)) for n in range(100, 20000, 100))
    (finding,) = judge(scheduled(halved))
    assert finding.severity == "note"
    assert "should the training go on that long" in finding.message


def test_does_not_take_epochs_for_steps() -> None:
    per_epoch = tuple((offset, 3e-4 * 0.9**offset) for offset in range(1, 100))
    assert judge(grouped(evidence(parameter(), ended="stopped"), lr_future=per_epoch)) == []


def test_finds_the_step_between_the_points_of_the_schedule() -> None:
    fine, coarse = (
        forecast(stepped(given)[0], given)
        for given in (scheduled(), scheduled((LINEAR[0], LINEAR[49], LINEAR[98])))
    )
    assert fine is not None
    assert coarse is not None
    # the next point would be the schedule's end
    assert abs(fine.step - coarse.step) <= 1
    assert coarse.lr == pytest.approx(3e-4 * (1 - (coarse.step - 100) / 1000))


def test_foresees_the_freeze_while_the_rate_is_still_rising() -> None:
    rising = tuple((offset, 3e-5 + 2.7e-4 * offset / 100) for offset in range(10, 101, 10))
    falling = tuple((100 + offset, lr) for offset, lr in LINEAR)
    low = evidence(parameter(updates=updates(edq=0.1)), ended="stopped")
    (finding,) = judge(grouped(low, lr_first=1e-6, lr_last=3e-5, lr_max=3e-5, lr_future=rising + falling))
    assert 880 <= finding.measured["freeze_step"] <= 940  # type: ignore[operator]
    assert "healthy once the rate has risen" in finding.message


def test_a_second_period_that_is_higher_is_not_part_of_the_first() -> None:
    again = tuple((1000 + offset, lr) for offset, lr in LINEAR)
    (once,) = judge(scheduled(LINEAR[:-1]))
    (twice,) = judge(scheduled((*LINEAR[:-1], *again)))
    assert once.measured["freeze_step"] == twice.measured["freeze_step"]


def ended(edqs: list[float | None], *, bits: float = 1.5, lr: float = 3e-5, **changes: object) -> Evidence:
    """Return a run of 1,000 steps in stretches of 100 that ended at a rate of ``lr``, down from 3e-4."""
    given = evidence(parameter(updates=updates(bits=bits, timeline=tuple(edqs), **changes)), ended="finished")
    given = dataclasses.replace(given, timeline=tuple(range(100, 1001, 100)))
    return grouped(given, lr_first=3e-4, lr_last=lr, lr_max=3e-4)


FADING: list[float | None] = [1.0, 1.0, 1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.0]


def test_says_since_when_updates_of_an_ended_run_were_lost() -> None:
    (finding,) = judge(ended(FADING))
    assert finding.severity == "warning"
    assert finding.measured["freeze_step"] == 601
    assert finding.measured["lost_share_at_end"] == pytest.approx(0.4)
    assert "from about step 601 on (40 % of the run)" in finding.message


def test_the_last_few_steps_of_an_ended_run_are_no_illness() -> None:
    assert judge(ended([*[1.0] * 8, 0.4, 0.1])) == []
    assert judge(ended([*[1.0] * 7, 0.4, 0.1, None])) == []


def test_a_rate_that_stayed_is_not_to_blame() -> None:
    assert judge(ended(FADING, lr=3e-4)) == []


def test_a_run_that_has_converged_lost_nothing() -> None:
    # its gradients have become so small that the largest rate would not bring them through either
    assert judge(ended(FADING, bits=-3.0)) == []


def test_an_ended_run_that_was_ill_all_along_is_left_to_the_other_rules() -> None:
    assert judge(ended([0.1] * 10)) == []
    assert judge(ended(FADING, edq=0.5)) == []
