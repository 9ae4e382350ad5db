from __future__ import annotations

import dataclasses
import random

import pytest

from precdoctor.report import cures
from precdoctor.rules import Subject
from precdoctor.trials import OUTCOMES, Trial
from tests.report import builders, tried


def labels(trials: tuple[Trial, ...]) -> list[str]:
    return [cure.label for cure in cures.cures(tried.treated().findings[0], trials)]


def test_what_can_be_tried_is_what_the_catalogue_of_remedies_has() -> None:
    from precdoctor.remedies import REMEDIES

    assert {remedy.id for remedy in REMEDIES} == cures.TREATABLE


def test_what_can_be_written_is_what_fix_has_edits_for() -> None:
    from precdoctor.fix.edits import EDITS

    assert set(EDITS) == cures.EDITABLE


def test_cures_are_ordered_by_what_they_did() -> None:
    shown = cures.cures(tried.treated().findings[0], tried.trials())
    assert [cure.rank for cure in shown] == list(range(1, 9))
    assert [(cure.prescription.remedy, cure.status) for cure in shown] == [
        ("autocast", "cured"),
        ("master-weights", "cured"),
        ("stochastic-rounding", "cured"),
        ("group-lr", "helped"),
        ("float32-state", "not tried"),
        ("reconnect", "by hand"),
        ("reinit", "harmed"),
        ("loss-scaling", "does not apply"),
    ]


def test_the_best_dose_speaks_for_a_remedy() -> None:
    assert "group-lr x22.6" in labels(tried.trials())
    assert "group-lr x10" not in labels(tried.trials())


def test_without_trials_the_order_is_the_rule_s() -> None:
    shown = cures.cures(tried.treated().findings[0], ())
    assert [cure.rank for cure in shown] == [cure.prescription.rank for cure in shown]
    assert {cure.status for cure in shown} == {"not tried yet", "by hand"}


def test_noise_does_not_decide_between_cures_that_did_the_same() -> None:
    draw = random.Random(0)
    noisy = tuple(
        dataclasses.replace(
            trial,
            travel_distance=0.1 + draw.uniform(-0.04, 0.04),
            loss_last=2.1 + draw.uniform(-0.04, 0.04),
        )
        for trial in tried.trials()
        if trial.outcome == "cured"
    )
    assert labels(noisy)[:3] == ["autocast", "master-weights", "stochastic-rounding"]


def test_the_cure_that_stays_nearer_to_float32_comes_first() -> None:
    far = {"autocast": 0.4, "master-weights": 0.1, "stochastic-rounding": 0.1}
    trials = tuple(
        dataclasses.replace(t, travel_distance=far[t.remedy], loss_last=1.9 if "stoch" in t.label else 2.4)
        for t in tried.trials()
        if t.remedy in far
    )
    assert labels(trials)[:3] == ["stochastic-rounding", "master-weights", "autocast"]


@pytest.mark.parametrize("change", [{"rules": ("PD102",)}, {"subjects": ("another.weight",)}])
def test_a_trial_for_another_finding_is_not_this_one_s(change: dict[str, tuple[str, ...]]) -> None:
    trials = tuple(dataclasses.replace(trial, **change) for trial in tried.trials())
    assert labels(trials)[3] == "group-lr"
    assert {cure.trial for cure in cures.cures(tried.treated().findings[0], trials)} == {None}


def test_a_trial_of_the_whole_program_is_every_subject_s() -> None:
    finding = dataclasses.replace(
        tried.treated().findings[0], subjects=(Subject(kind="optimizer", name="AdamW"),)
    )
    trial = dataclasses.replace(tried.trials()[2], subjects=())
    assert cures.cures(finding, (trial,))[0].trial == trial


def test_runs_of_comparison_stand_apart_and_first() -> None:
    trials = tuple(reversed(tried.trials()))
    assert [t.label for t in cures.compared_with(trials)] == ["untreated", "float32"]
    outcomes = [t.outcome for t in cures.tried(trials)]
    assert outcomes == sorted(outcomes, key=lambda outcome: OUTCOMES.index(outcome or "no effect"))
    assert len(outcomes) == 10


def verdict(*remedies: str) -> str:
    return cures.verdict([t for t in tried.trials() if t.remedy in ("untreated", *remedies)])


def test_the_verdict_names_the_best_cure_and_its_equals() -> None:
    assert verdict("autocast", "kahan", "stochastic-rounding", "reinit") == (
        "autocast cures it: EDQ 0.000 -> 0.998; travel 0.98 of float32's, 0.12 off. "
        "So do kahan and stochastic-rounding."
    )
    assert verdict("kahan", "stochastic-rounding").endswith(" So does stochastic-rounding.")
    assert verdict("kahan") == "kahan cures it: EDQ 0.000 -> 1.02 (net); travel 0.99 of float32's, 0.21 off."


def test_the_verdict_says_when_nothing_cured() -> None:
    assert verdict("group-lr", "reinit") == (
        "None of the 3 cures that were tried heals it. group-lr x22.6 helps most: "
        "EDQ 0.000 -> 0.91, but the weights travel 21 times as far as in float32."
    )
    assert verdict("reinit", "eps") == "None of the 2 cures that were tried helped."
    assert verdict("reinit") == "The one cure that was tried did not help."
    assert verdict() == ""


def test_an_error_is_told_once() -> None:
    trial = tried.trials()[-1]
    assert cures.reason(trial) == f"{trial.why} ({tried.ERROR})"
    assert cures.reason(dataclasses.replace(trial, why="")) == tried.ERROR
    assert (
        cures.reason(dataclasses.replace(trial, why=f"it fails: {tried.ERROR}")) == f"it fails: {tried.ERROR}"
    )


def test_a_report_without_cures_has_nothing_to_try() -> None:
    assert cures.can_be_tried(builders.ill())
    assert not cures.can_be_tried(builders.healthy())
