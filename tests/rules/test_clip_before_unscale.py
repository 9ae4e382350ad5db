from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import EarlyClip, Evidence, Place, Scaler
from precdoctor.rules.clip_before_unscale import ClipBeforeUnscale
from tests.rules.build import evidence, parameter

CLIPPED = Place(file="train.py", line=19, function="train_step")
STEPPED = Place(file="train.py", line=20, function="train_step")
Samples = tuple[tuple[float, float, float | None], ...]


def run(*samples: tuple[float, float, float | None], **changes: Any) -> Evidence:
    values: dict[str, Any] = {"kind": "norm", "place": CLIPPED, "stepped_at": STEPPED, "seen": len(samples)}
    clip = EarlyClip(samples=samples, **{**values, **changes})
    return evidence(parameter(), scalers=(Scaler(enabled=True, scale=65536.0, early_clips=(clip,)),))


def test_a_norm_of_one_becomes_next_to_nothing() -> None:
    (finding,) = ClipBeforeUnscale.criterion(run((65536.0, 1.0, 44439.0)))
    assert finding.severity == "error"
    assert [(x.place, x.role) for x in finding.locations] == [(CLIPPED, "cause"), (STEPPED, "site")]
    assert finding.measured["threshold_unscaled"] == 1 / 65536
    assert "a threshold of 1 leaves 1.5e-5 once they are divided" in finding.message
    assert [s.name for s in finding.subjects] == ["train_step"]


def test_a_clip_that_only_measures_the_norm_is_healthy() -> None:
    assert not ClipBeforeUnscale.criterion(run((65536.0, float("inf"), 44439.0)))


@pytest.mark.parametrize(
    "samples",
    [
        ((65536.0, 65536.0, 90000.0), (32768.0, 32768.0, 90000.0)),
        ((65536.0, 6.5, 90000.0), (32768.0, 3.25, 90000.0)),
        ((65536.0, 65536.0, 90000.0),),
    ],
)
def test_a_threshold_that_was_multiplied_by_the_scale_is_healthy(samples: Samples) -> None:
    assert not ClipBeforeUnscale.criterion(run(*samples))


def test_a_threshold_that_stays_while_the_scale_changes_is_ill() -> None:
    assert ClipBeforeUnscale.criterion(run((16.0, 4.0, 20.0), (4.0, 4.0, 20.0)))


def test_own_clipping_is_known_by_what_it_leaves() -> None:
    (finding,) = ClipBeforeUnscale.criterion(run(*[(1024.0, 1.0, None)] * 4, kind="own"))
    assert "a threshold of 1" in finding.message


def test_a_threshold_that_was_never_reached_had_no_effect() -> None:
    assert not ClipBeforeUnscale.criterion(run((65536.0, 1000.0, 600.0)))


def test_a_share_of_the_weights_is_meant_where_the_scale_is_in_it() -> None:
    samples = [(16384.0, 0.004, 300.0)] * 4
    (finding,) = ClipBeforeUnscale.criterion(run(*samples, kind="own", of_weights=0.02))
    assert "0.02 of the norm of the weights" in finding.message
    assert not ClipBeforeUnscale.criterion(run(*samples, kind="own", of_weights=0.02 * 16384))
