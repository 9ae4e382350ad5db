"""PD604: each number of its criterion from both sides, for weights and for data."""

from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import DataQuantizer, Evidence, Place
from precdoctor.rules.quantization_noise import QuantizationNoise
from precdoctor.rules.saturated_quantizer import SaturatedQuantizer
from tests.rules.build import evidence, fidelity, gradient_quantizer, parameter, quantizer

judge = SaturatedQuantizer.criterion
SITE = Place(file="layers.py", line=12)


def weight(**changes: Any) -> Evidence:
    return evidence(parameter(shape=(64, 64)), quantizers=(quantizer(last=fidelity(**changes)),))


def data(**changes: Any) -> Evidence:
    values = {"module": "body.2", "place": SITE, "seen": 5, "first_step": 0, "last_step": 30}
    return evidence(parameter(), data_quantizers=(DataQuantizer(**{**values, **changes}),))


@pytest.mark.parametrize(
    ("share", "found"), [(0.022, False), (0.2, False), (0.21, True), (0.415, True), (0.76, True)]
)
def test_finds_weights_beyond_the_last_code(share: float, found: bool) -> None:
    findings = judge(weight(clipped_share=share))
    assert len(findings) == found
    if found:
        assert (findings[0].rule, findings[0].severity) == ("PD604", "error")
        assert (
            "lie beyond the largest value that is used of it: the scale is too small" in findings[0].message
        )
        assert findings[0].measured["clipped_share"] == share
        assert findings[0].prescriptions[0].remedy == "block-scale"


def test_finds_values_that_are_not_finite() -> None:
    (finding,) = judge(weight(non_finite=7, clipped_share=0.5, sqnr_db=None))
    assert "7 of the used values of weight are not finite" in finding.message


@pytest.mark.parametrize(
    ("flushed", "sqnr_db", "found"),
    [(0.51, 5.9, True), (0.5, 5.9, False), (0.51, 6.0, False), (0.81, 20.0, True), (0.8, 20.0, False)],
)
def test_finds_a_weight_that_is_mostly_used_as_zero(flushed: float, sqnr_db: float, found: bool) -> None:
    findings = judge(weight(flushed_share=flushed, sqnr_db=sqnr_db, reach=0.5))
    assert len(findings) == found
    if found:
        assert "the scale is too large, zero or missing" in findings[0].message


@pytest.mark.parametrize(
    ("first", "last", "levels", "found"),
    [(0.4, 0.69, 16, True), (0.4, 0.7, 16, False), (0.7, 0.4, 16, False), (0.4, 0.4, 15, False)],
)
def test_finds_values_that_do_not_follow_their_weight(
    first: float, last: float, levels: int, found: bool
) -> None:
    looks = {"first": fidelity(correlation=first), "last": fidelity(correlation=last)}
    findings = judge(evidence(parameter(shape=(64, 64)), quantizers=(quantizer(levels=levels, **looks),)))
    assert len(findings) == found
    if found:
        assert "do not follow it (correlation 0.69)" in findings[0].message
        assert findings[0].prescriptions == ()


def test_one_reason_is_given_for_each_weight() -> None:
    (finding,) = judge(weight(clipped_share=0.5, flushed_share=0.9, sqnr_db=0.0, reach=0.2))
    assert "beyond the largest value" in finding.message


def test_no_weight_is_saturated_and_noisy() -> None:
    for reach in (0.2, 1.0):
        sick = weight(flushed_share=0.9, sqnr_db=0.0, reach=reach)
        assert len(judge(sick)) + len(QuantizationNoise.criterion(sick)) == 1


@pytest.mark.parametrize(("share", "found"), [(0.5, False), (0.51, True)])
def test_finds_data_beyond_the_range(share: float, found: bool) -> None:
    findings = judge(data(clipped_share=share, clipped_share_first=0.03))
    assert len(findings) == found
    if found:
        assert [(s.kind, s.name) for s in findings[0].subjects] == [("module", "body.2")]
        assert [loc.place for loc in findings[0].locations] == [SITE]
        assert "after 30 steps (3 % before step 1)" in findings[0].message
        assert findings[0].prescriptions[0].remedy == "update-amax"


@pytest.mark.parametrize(("share", "found"), [(0.5, False), (0.51, True)])
def test_finds_data_that_is_not_finite(share: float, found: bool) -> None:
    findings = judge(data(non_finite_share=share))
    assert len(findings) == found
    if found:
        assert (
            "51 % of the values that body.2 quantizes at layers.py:12 are not finite" in findings[0].message
        )


def test_only_the_last_look_at_data_counts() -> None:
    assert judge(data(clipped_share_first=0.9, clipped_share=0.1)) == []


def test_weights_that_are_not_trained_are_not_judged() -> None:
    frozen = evidence(parameter(trainable=False), quantizers=(quantizer(last=fidelity(clipped_share=0.9)),))
    assert judge(frozen) == []


def gradients(**changes: Any) -> Evidence:
    return evidence(parameter(), gradient_quantizers=(gradient_quantizer(**changes),))


@pytest.mark.parametrize(
    ("projection", "energy", "found"),
    [(0.75, 0.0, True), (0.89, 0.0, True), (0.91, 0.0, False), (0.6, 0.35, False), (None, 0.0, False)],
)
def test_finds_gradients_beyond_the_last_code(projection: float | None, energy: float, found: bool) -> None:
    findings = judge(gradients(projection=projection, flushed_energy=energy))
    assert len(findings) == found
    if found:
        assert findings[0].severity == "warning"
        assert "the largest values lie beyond the last code" in findings[0].message
        assert findings[0].prescriptions[0].remedy == "update-amax"


@pytest.mark.parametrize(
    ("energy", "changes", "found"),
    [
        (0.51, {}, True),
        (0.5, {}, False),
        (1.0, {"random": True}, False),
        (1.0, {"format": "float8_e4m3fn"}, False),
    ],
)
def test_finds_gradients_that_are_mostly_used_as_zero(
    energy: float, changes: dict[str, Any], found: bool
) -> None:
    findings = judge(gradients(projection=1 - energy, flushed_energy=energy, **changes))
    assert len(findings) == found
    if found:
        assert findings[0].severity == "error"
        assert "the scale is too large, or missing" in findings[0].message


@pytest.mark.parametrize(
    ("flushed", "reach", "found"), [(0.81, 0.12, True), (0.8, 0.01, False), (0.99, 0.13, False)]
)
def test_finds_data_that_is_used_as_zero_for_want_of_a_smaller_scale(
    flushed: float, reach: float, found: bool
) -> None:
    findings = judge(data(flushed_share=flushed, reach=reach))
    assert len(findings) == found
    if found:
        assert "are used as zero after 30 steps" in findings[0].message
        assert "its scale is too large for them" in findings[0].message


@pytest.mark.parametrize(
    ("flushed", "sqnr_db", "reach", "found"),
    [
        (0.51, 5.9, 0.24, True),
        (0.5, 5.9, 0.24, False),
        (0.51, 6.0, 0.24, False),
        (0.51, 5.9, 0.25, False),
        (0.51, None, 0.24, False),
    ],
)
def test_finds_data_of_which_rounding_leaves_little(
    flushed: float, sqnr_db: float | None, reach: float, found: bool
) -> None:
    findings = judge(data(flushed_share=flushed, sqnr_db=sqnr_db, reach=reach))
    assert len(findings) == found
    if found:
        assert "at 5.9 dB of signal to quantization noise" in findings[0].message
        assert "its scale is too large for them" in findings[0].message
        assert findings[0].measured["sqnr_db"] == sqnr_db
