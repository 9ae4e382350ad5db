"""PD602: each number of its criterion from both sides."""

from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Evidence, Quantizer
from precdoctor.rules.quantization_noise import QuantizationNoise
from precdoctor.rules.saturated_quantizer import SaturatedQuantizer
from precdoctor.rules.stale_quantized_weight import StaleQuantizedWeight
from tests.rules.build import evidence, fidelity, parameter, quantizer

judge = StaleQuantizedWeight.criterion


def run(*quantizers: Quantizer) -> Evidence:
    weights = [parameter(q.parameter, shape=(64, 64), format="float32") for q in quantizers]
    return evidence(*weights, quantizers=quantizers)


def cached(name: str = "weight", **changes: Any) -> Quantizer:
    """Return what was measured of a cache that is never made anew."""
    moved = {"weight_moved": 8.05, "used_moved": 0.0, "changed_share": 0.0, "flips_per_step": 0.0}
    old = {"age_steps": 31, "stale_share": 0.98, "last": fidelity(sqnr_db=-0.01)}
    return quantizer(name, **{**moved, **old, **changes})


def test_finds_a_cache_that_is_never_made_anew() -> None:
    (finding,) = judge(run(cached("a"), cached("b", weight_moved=9.0)))
    assert (finding.rule, finding.severity) == ("PD602", "error")
    assert [s.name for s in finding.subjects] == ["a", "b"]
    assert "quantized at quantizers.py:7 up to 31 optimizer steps before" in finding.message
    assert "b has moved by 9" in finding.message
    assert "98 % of the values would differ" in finding.message
    assert finding.measured["sqnr_db_last"] == -0.01
    assert [p.remedy for p in finding.prescriptions] == ["refresh-cache"]


@pytest.mark.parametrize(
    "healthy",
    [
        {"age_steps": 0},
        {"stale_share": 0.019},
        {"used_moved": 0.41},  # 5 % of 8.05: it is made anew now and then
        {"weight_moved": 0.0},  # what does not move can't be old
    ],
)
def test_is_silent_about_what_follows_the_weight(healthy: dict[str, Any]) -> None:
    assert judge(run(cached(**{"changed_share": 0.4, **healthy}))) == []


@pytest.mark.parametrize(
    "sick", [{"age_steps": 1}, {"stale_share": 0.02}, {"used_moved": 0.4}, {"stale_share": None}]
)
def test_finds_what_only_just_does_not_follow(sick: dict[str, Any]) -> None:
    (finding,) = judge(run(cached(**sick)))
    assert finding.severity == "error"


def test_finds_a_cast_that_is_kept() -> None:
    cast = cached(kind="cast", format="bfloat16", rounding=None, stale_share=None)
    (finding,) = judge(run(cast))
    assert "cast to bfloat16 at layers.py:40" in finding.message


def test_a_copy_of_what_no_optimizer_steps_is_silent() -> None:
    frozen = evidence(parameter("weight", trainable=False), quantizers=(cached(),))
    assert judge(frozen) == []
    assert judge(evidence(parameter("weight"), quantizers=(cached(route="buffer"),))) == []


def test_what_is_stale_is_neither_noisy_nor_saturated() -> None:
    stale = run(cached(last=fidelity(sqnr_db=-0.01, clipped_share=0.9, flushed_share=0.9)), *peers())
    assert QuantizationNoise.criterion(stale) == []
    assert SaturatedQuantizer.criterion(stale) == []


def peers() -> list[Quantizer]:
    return [quantizer(name) for name in ("x", "y", "z")]


# ---------------------------------------------------------------------- the dead zone


def slow(**changes: Any) -> Quantizer:
    """Return what was measured at a thousandth of the learning rate."""
    values = {"changed_share": 0.03, "flips_per_step": 9.4e-5, "span_steps": 100, "weight_moved": 2e-3}
    return quantizer(**{**values, **changes})


def test_notes_codes_that_hardly_change() -> None:
    (finding,) = judge(run(slow()))
    assert (finding.rule, finding.severity) == ("PD602", "note")
    assert "In 100 steps 3 % of the codes of weight changed at most" in finding.message
    assert finding.measured["codes_changed_share"] == 0.03


@pytest.mark.parametrize(
    "healthy",
    [
        {"changed_share": 0.05},
        {"span_steps": 49},
        {"changed_share": None},
        {"weight_moved": 0.0},
        {"route": "cut"},  # PD601
        {"kind": "cast"},
    ],
)
def test_notes_nothing_else(healthy: dict[str, Any]) -> None:
    assert judge(run(slow(**healthy))) == []


@pytest.mark.parametrize("sick", [{"changed_share": 0.049}, {"span_steps": 50}])
def test_notes_what_only_just_stays_in_the_dead_zone(sick: dict[str, Any]) -> None:
    assert len(judge(run(slow(**sick)))) == 1


def test_a_cache_is_no_dead_zone_as_well() -> None:
    (finding,) = judge(run(cached(span_steps=100)))
    assert finding.severity == "error"
