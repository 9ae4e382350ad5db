from __future__ import annotations

import pytest

from precdoctor.rules.finding import Finding
from precdoctor.rules.swallowed_next_update import MIN_JUDGED, SwallowedNextUpdate
from tests.rules.checkpoints import alone, evidence, moved, prognosis, stored


def judged(told: object, **changes: object) -> list[Finding]:
    tensor = alone(moved(), prognoses=(told,), stepped=True, driven=True, **changes)
    return SwallowedNextUpdate.criterion(evidence(tensor, files=1, optimizers=("AdamW",)))


def test_an_update_that_the_stored_format_loses_is_a_warning() -> None:
    (finding,) = judged(prognosis())
    assert finding.severity == "warning"
    assert "3e-6" in finding.message
    assert "4.75 bits short" in finding.message
    assert finding.measured["lost_share"] == 0.995
    assert finding.prescriptions


@pytest.mark.parametrize(
    "told",
    [
        prognosis(edq=0.71, lost_share=0.9),
        prognosis(stored=False),
        prognosis(intended=MIN_JUDGED - 1),
        prognosis(update=1.9e-8),
        prognosis(intended=0, edq=None),
    ],
    ids=["most arrives", "another format", "too few", "too small to matter", "nothing intended"],
)
def test_what_is_healthy(told: object) -> None:
    assert not judged(told)


def test_float32_weights_are_not_judged() -> None:
    assert not judged(prognosis(format="float32"), first=stored(format="float32"))


def test_weights_with_a_float32_master_are_not_judged() -> None:
    assert not judged(prognosis(), has_master=True)


def test_state_that_may_keep_the_remainder_makes_it_a_note() -> None:
    (finding,) = judged(prognosis(), extra_state=("compensation",))
    assert finding.severity == "note"
