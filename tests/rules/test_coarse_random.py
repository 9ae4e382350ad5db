from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import CoarseUniform, Place, RoundedDecay
from precdoctor.rules.coarse_random import CoarseRandom
from precdoctor.rules.finding import Finding
from tests.rules.build import evidence, parameter

DRAWN, USED = (
    Place(file="train.py", line=7, function="gumbel"),
    Place(file="train.py", line=8, function="gumbel"),
)


def judged(**changes: Any) -> list[Finding]:
    values: dict[str, Any] = {
        "format": "bfloat16",
        "use": "tail",
        "place": DRAWN,
        "used_at": USED,
        "operation": "log",
        "drawn": 32768,
        "distinct": 1094,
        "nearest": 1 / 32768,
        "nearest_count": 1,
        "expected": 1.0,
    }
    return CoarseRandom.criterion(evidence(parameter(), uniforms=(CoarseUniform(**{**values, **changes}),)))


def test_noise_that_comes_as_near_as_it_should_is_healthy() -> None:
    assert not judged()


@pytest.mark.parametrize(("expected", "ill"), [(15.0, False), (17.0, True)])
def test_a_gap_before_the_singularity_cuts_the_tail_off(expected: float, ill: bool) -> None:
    found = judged(nearest=1 / 256, expected=expected, largest=5.53)
    assert bool(found) == ill
    if ill:
        assert found[0].severity == "warning"
        assert [x.place for x in found[0].locations] == [DRAWN, USED]
        assert [s.name for s in found[0].subjects] == ["gumbel"]


@pytest.mark.parametrize(("zeros", "ill"), [(3, False), (4, True)])
def test_numbers_on_the_singularity_are_ill(zeros: int, ill: bool) -> None:
    assert bool(judged(zeros=zeros)) == ill


def test_numbers_that_eps_saved_from_it_are_ill() -> None:
    assert judged(nearest=1e-20, nearest_count=70, expected=3e-16)
    assert not judged(nearest=1e-20, nearest_count=1, expected=3e-16)


@pytest.mark.parametrize(
    ("expected", "observed", "ill"),
    [
        (100.0, 124.0, False),
        (1000.0, 1240.0, False),
        (1000.0, 1260.0, True),
        (30.0, 0.0, False),
        (40.0, 0.0, True),
    ],
)
def test_a_probability_must_be_off_by_a_quarter_and_surely(
    expected: float, observed: float, ill: bool
) -> None:
    assert bool(judged(use="probability", operation="lt", expected=expected, observed=observed)) == ill


@pytest.mark.parametrize(
    ("expected", "observed", "ill"),
    [(52.0, 0.0, True), (51.0, 0.0, False), (500.0, 380.0, False), (500.0, 300.0, True)],
)
def test_entries_that_never_come_must_have_a_twentieth_of_the_draws(
    expected: float, observed: float, ill: bool
) -> None:
    found = judged(
        use="entry", expected=expected, observed=observed, drawn=1024, entries=4000, unreached=3602
    )
    assert bool(found) == ill
    if ill:
        assert "3,602 of the 4,000 entries that they choose from at train.py:8" in found[0].message


def test_a_few_draws_say_nothing() -> None:
    assert not judged(drawn=255, nearest=0.5, expected=128.0)


def decay(**changes: Any) -> RoundedDecay:
    values: dict[str, Any] = {"format": "bfloat16", "place": DRAWN, "used_at": USED, "function": "forward"}
    return RoundedDecay(**{**values, "meant": 0.9999, "stored": 1.0, "uses": 12, "steps": 3, **changes})


@pytest.mark.parametrize(
    ("changes", "severities", "words"),
    [
        ({}, ["error"], "keeps its old value and takes nothing up"),
        (
            {"meant": 0.998, "stored": 0.99609375},
            ["warning"],
            "forgets 0.00391 of itself each time and not 0.002",
        ),
        ({"steps": 2}, [], ""),
        (
            {"steps": 1, "meant": 0.999, "repeats": 1000},
            ["error"],
            "has 2.72 times the weight that was meant after 1,000 times",
        ),
        ({"steps": 1, "meant": 0.999, "repeats": 200}, [], ""),
    ],
)
def test_a_decay_that_was_rounded(changes: dict[str, Any], severities: list[str], words: str) -> None:
    found = CoarseRandom.criterion(evidence(decays=(decay(**changes),)))
    assert [finding.severity for finding in found] == severities
    for finding in found:
        assert words in finding.message
        assert [(where.place, where.role) for where in finding.locations] == [
            (DRAWN, "cause"),
            (USED, "site"),
        ]


def test_the_lines_that_use_one_decay_are_one_finding() -> None:
    other = Place(file="ema.py", line=20, function="forward")
    (finding,) = CoarseRandom.criterion(evidence(decays=(decay(), decay(used_at=other))))
    assert "scaled by it at ema.py:20 and train.py:8 keeps" in finding.message
