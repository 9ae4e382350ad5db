"""PD603: each number of its criterion from both sides."""

from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import DataQuantizer, Evidence, Place, Quantizer
from precdoctor.rules.quantization_noise import QuantizationNoise
from precdoctor.rules.saturated_quantizer import SaturatedQuantizer
from tests.rules.build import evidence, fidelity, gradient_quantizer, parameter, quantizer

judge = QuantizationNoise.criterion


def run(*quantizers: Quantizer) -> Evidence:
    weights = [parameter(q.parameter, shape=(64, 64), format="float32") for q in quantizers]
    return evidence(*weights, quantizers=quantizers)


def layers(count: int = 3, sqnr_db: float = 19.0) -> list[Quantizer]:
    return [quantizer(f"layers.{i}.weight", last=fidelity(sqnr_db=sqnr_db)) for i in range(count)]


def noisy(sqnr_db: float | None, **changes: Any) -> Quantizer:
    return quantizer("outlier.weight", last=fidelity(sqnr_db=sqnr_db), **changes)


def test_finds_the_layer_that_is_much_noisier_than_the_others() -> None:
    (finding,) = judge(run(*layers(), noisy(6.0)))
    assert (finding.rule, finding.severity) == ("PD603", "warning")
    assert [s.name for s in finding.subjects] == ["outlier.weight"]
    assert "keeps 6 dB" in finding.message
    assert "the median of the other 3 quantized weights is 19 dB" in finding.message
    keep, block = finding.prescriptions
    assert (keep.remedy, block.remedy) == ("keep-float32", "block-scale")
    assert "25.0% of the quantized elements" in keep.why


@pytest.mark.parametrize(("sqnr_db", "found"), [(9.9, True), (10.0, False)])
def test_ten_decibels_are_enough(sqnr_db: float, found: bool) -> None:
    assert len(judge(run(*layers(), noisy(sqnr_db)))) == found


@pytest.mark.parametrize(("others", "found"), [(17.1, True), (17.0, False)])
def test_it_stands_out_by_eight_decibels(others: float, found: bool) -> None:
    assert len(judge(run(*layers(sqnr_db=others), noisy(9.0)))) == found


@pytest.mark.parametrize(("count", "found"), [(2, False), (3, True)])
def test_three_others_make_a_median(count: int, found: bool) -> None:
    assert len(judge(run(*layers(count), noisy(5.0)))) == found


def test_a_coarse_grid_that_all_layers_share_is_a_choice() -> None:
    assert judge(run(*layers(8, sqnr_db=4.4))) == []  # signs and a mean


def test_a_layer_without_error_is_no_peer() -> None:
    assert judge(run(*layers(2), quantizer("exact", last=fidelity(sqnr_db=None)), noisy(5.0))) == []


@pytest.mark.parametrize(
    ("flushed", "sqnr_db", "found"),
    [(0.51, 5.9, True), (0.5, 5.9, False), (0.51, 6.0, False), (0.81, 20.0, True), (0.8, 20.0, False)],
)
def test_finds_a_grid_on_which_most_of_a_weight_is_zero(flushed: float, sqnr_db: float, found: bool) -> None:
    coarse = quantizer(last=fidelity(flushed_share=flushed, sqnr_db=sqnr_db))
    findings = judge(run(coarse))
    assert len(findings) == found
    if found:
        assert "the grid is too coarse for what shares a scale" in findings[0].message
        assert findings[0].prescriptions[0].remedy == "block-scale"


@pytest.mark.parametrize(("reach", "noise"), [(0.72, True), (1.39, True), (0.71, False), (1.41, False)])
def test_a_scale_that_does_not_follow_the_largest_weight_is_another_illness(
    reach: float, noise: bool
) -> None:
    coarse = run(quantizer(last=fidelity(flushed_share=0.9, sqnr_db=1.0, reach=reach)))
    assert len(judge(coarse)) == noise
    assert len(SaturatedQuantizer.criterion(coarse)) == (not noise)


def test_casts_and_buffers_are_not_judged() -> None:
    assert judge(run(*layers(), noisy(5.0, kind="cast"))) == []
    assert judge(run(*layers(), quantizer("codes", route="buffer", last=None))) == []


def one_sided(**changes: Any) -> Evidence:
    values = {"bias": 0.49, "flushed_share": 0.999, **changes}
    return evidence(parameter(), gradient_quantizers=(gradient_quantizer(**values),))


def test_finds_rounding_of_gradients_that_points_one_way() -> None:
    (finding,) = judge(one_sided())
    assert (finding.severity, [(s.kind, s.name) for s in finding.subjects]) == ("error", [("op", "quantize")])
    assert "Gradients (4 x 32 x 1,024) are rounded to nearest at layers.py:40" in finding.message
    assert "together they are 0.49 of the gradient's magnitudes" in finding.message
    assert [(where.place.line, where.role) for where in finding.locations] == [(60, "cause"), (40, "site")]
    assert [p.remedy for p in finding.prescriptions] == ["stochastic-gradients"]


@pytest.mark.parametrize(("bias", "found"), [(0.31, True), (0.3, False), (None, False)])
def test_three_tenths_do_not_cancel(bias: float | None, found: bool) -> None:
    assert len(judge(one_sided(bias=bias))) == found


@pytest.mark.parametrize(
    "changes",
    [{"random": True}, {"seen": 2}, {"format": "float8_e4m3fn"}, {"flushed_energy": 0.51}],
    ids=["by chance", "seen twice", "8 bits: PD203", "a wrong scale: PD604"],
)
def test_other_roundings_of_gradients_are_another_matter(changes: dict[str, Any]) -> None:
    assert judge(one_sided(**changes)) == []


def test_shapes_that_share_a_line_are_one_finding() -> None:
    worse, milder = gradient_quantizer(bias=0.5), gradient_quantizer(bias=0.4, shape=(64, 16))
    (finding,) = judge(evidence(parameter(), gradient_quantizers=(milder, worse)))
    assert finding.measured["bias"] == 0.5


def columns(lost: int, **changes: Any) -> Evidence:
    values = {
        "module": "body.2",
        "place": Place(file="layers.py", line=12),
        "column_passes": 5,
        "columns": 12,
    }
    return evidence(
        parameter(), data_quantizers=(DataQuantizer(**{**values, "lost_columns": lost, **changes}),)
    )


def test_finds_data_of_which_most_columns_are_lost() -> None:
    (finding,) = judge(columns(11))
    assert (finding.severity, [(s.kind, s.name) for s in finding.subjects]) == (
        "warning",
        [("module", "body.2")],
    )
    assert "11 of the 12 columns that vary were used as zero in all 5 passes" in finding.message
    assert [where.place.line for where in finding.locations] == [12]


@pytest.mark.parametrize(
    ("lost", "changes", "found"),
    [
        (6, {}, True),
        (5, {}, False),
        (4, {"columns": 8}, True),
        (3, {"columns": 4}, False),
        (11, {"column_passes": 2}, False),
        (0, {"columns": 0}, False),
        (11, {"flushed_share": 0.95, "reach": 0.1}, False),  # its scale is too large: PD604
    ],
)
def test_half_of_the_columns_each_time_is_a_loss(lost: int, changes: dict[str, Any], found: bool) -> None:
    evidence = columns(lost, **changes)
    assert len(judge(evidence)) == found
    assert len(SaturatedQuantizer.criterion(evidence)) == ("reach" in changes)
