"""PD601: each number of its criterion from both sides, and what it leaves to others."""

from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Evidence, Gradient, Parameter, Place, Quantizer
from precdoctor.rules.missing_gradient import MissingGradient
from precdoctor.rules.severed_gradient import SeveredGradient
from precdoctor.rules.severed_quantizer import SeveredQuantizer
from precdoctor.rules.stale_optimizer import StaleOptimizer
from tests.rules.build import evidence, fidelity, optimizer, parameter, quantizer

judge = SeveredQuantizer.criterion
NONE, ZEROS, SOME = Gradient(absent=20), Gradient(present=20, all_zero=20), Gradient(present=20)


def run(quantizer: Quantizer, gradient: Gradient = SOME, **changes: Any) -> Evidence:
    """Return a run with one quantized weight beside a bias that gets gradient."""
    weight = parameter("weight", shape=(64, 64), gradient=gradient, format="float32")
    return evidence(weight, parameter("bias", gradient=SOME), quantizers=(quantizer,), **changes)


def frozen(**changes: Any) -> Quantizer:
    """Return a quantizer that was given the weight's data: no gradient, and nothing moves."""
    still = {"first": fidelity(step=0), "last": fidelity(), "weight_moved": 0.0, "changed_share": 0.0}
    density = {"gradient_density": None, "used_density": None, "gradient_cosine": None}
    return quantizer(**{"route": "cut", "cut_at_entry": True, **still, **density, **changes})


def test_is_silent_about_a_straight_through_estimator() -> None:
    assert judge(run(quantizer())) == []


def test_finds_a_weight_whose_history_is_left_behind() -> None:
    (finding,) = judge(run(frozen(), NONE))
    assert (finding.rule, finding.severity) == ("PD601", "error")
    assert [s.name for s in finding.subjects] == ["weight"]
    assert [(loc.role, loc.place.line) for loc in finding.locations] == [("cause", 40), ("site", 7)]
    assert "quantize() at layers.py:40 takes it without its history" in finding.message
    assert "0.002 at step 0 and, to all digits, at step 30" in finding.message
    assert finding.measured["steps_without_gradient"] == 20
    assert finding.measured["error_is_constant"] == 1
    assert [p.remedy for p in finding.prescriptions] == ["ste"]


def test_one_finding_for_all_weights_of_a_line() -> None:
    weights = [parameter(f"{i}.weight", gradient=NONE) for i in range(13)]
    quantizers = tuple(frozen(name=w.name) for w in weights)
    (finding,) = judge(evidence(*weights, quantizers=quantizers))
    assert len(finding.subjects) == 13
    assert finding.message.startswith("13 quantized weights get no gradient")


@pytest.mark.parametrize("absent", [2, 3])
def test_says_so_from_three_steps_on(absent: int) -> None:
    assert len(judge(run(frozen(), Gradient(absent=absent)))) == (absent == 3)


def test_a_gradient_that_was_seen_once_is_no_cut() -> None:
    assert judge(run(frozen(gradient_density=1.0), Gradient(present=1, absent=19))) == []


def test_finds_rounding_that_is_differentiated() -> None:
    rounded = frozen(route="zero derivative", zero_nodes=("RoundBackward0",), cut_at_entry=False)
    (finding,) = judge(run(rounded, ZEROS))
    assert "through RoundBackward0 only, whose derivative is zero" in finding.message
    assert judge(run(rounded, Gradient(present=20, all_zero=19))) == []
    assert judge(run(rounded, Gradient(present=2, all_zero=2))) == []


def test_weight_decay_moves_what_rounding_cuts_off() -> None:
    rounded = frozen(
        route="zero derivative", weight_moved=0.1, last=fidelity(mean_absolute_error=1.8e-3), changed_share=0
    )
    (finding,) = judge(run(rounded, ZEROS))
    assert "has moved by 10 % of its norm, by weight decay; 0 % of its codes changed" in finding.message


@pytest.mark.parametrize(
    ("density", "cosine", "found"),
    [(0.0129, 0.064, True), (0.099, 0.29, True), (0.11, 0.29, False), (0.099, 0.31, False)],
)
def test_finds_gradient_by_the_scale_alone(density: float, cosine: float, found: bool) -> None:
    sparse = quantizer(gradient_density=density, used_density=1.0, gradient_cosine=cosine)
    findings = judge(run(sparse))
    assert len(findings) == found
    if found:
        assert "only the scale is differentiated" in findings[0].message


def test_density_counts_beside_that_of_the_used_values() -> None:
    # of an embedding a batch uses a few rows
    rows = quantizer(gradient_density=0.02, used_density=0.02, gradient_cosine=0.2)
    assert judge(run(rows)) == []


def test_few_elements_have_no_density() -> None:
    small = quantizer(numel=63, gradient_density=0.01, gradient_cosine=0.01)
    assert judge(run(small)) == []
    assert judge(run(quantizer(numel=64, gradient_density=0.01, gradient_cosine=0.01)))


@pytest.mark.parametrize("route", ["scale only", "zero derivative"])
@pytest.mark.parametrize("cosine", [0.06, 0.31])
def test_a_mean_of_magnitudes_gives_every_element_gradient(route: str, cosine: float) -> None:
    dense = quantizer(route=route, gradient_density=1.0, gradient_cosine=cosine)
    assert len(judge(run(dense))) == (cosine < 0.3)


def test_rows_that_are_quantized_one_by_one_are_no_scale() -> None:
    # the graph leads through small tensors, the gradient is that of what is used
    assert judge(run(quantizer(route="scale only", gradient_cosine=0.99))) == []


@pytest.mark.parametrize(("density", "found"), [(0.06, True), (0.11, False), (None, False)])
def test_finds_codes_cut_off_beside_a_scale_that_is_not(density: float | None, found: bool) -> None:
    codes = frozen(gradient_density=density)
    assert len(judge(run(codes))) == found


def test_finds_a_function_that_returns_no_gradient() -> None:
    own = frozen(route="custom function", zero_nodes=("QuantizeBackward",))
    (finding,) = judge(run(own, NONE))
    assert "the backward of a custom function at quantize() at layers.py:40 returns no gradient" in (
        finding.message
    )


def test_a_gradient_that_is_cleared_for_all_is_not_blamed_on_a_function() -> None:
    own = frozen(route="custom function")
    alone = evidence(parameter("weight", gradient=NONE), parameter("bias", gradient=NONE), quantizers=(own,))
    assert judge(alone) == []
    assert MissingGradient.criterion(alone)


def test_finds_a_function_that_returns_zeros() -> None:
    (finding,) = judge(run(frozen(route="custom function"), ZEROS))
    assert "returns zeros" in finding.message
    assert judge(run(frozen(route="custom function", used_density=0.0), ZEROS)) == []


def test_an_open_way_is_never_severed() -> None:
    assert judge(run(quantizer(gradient_density=0.0), ZEROS)) == []
    assert judge(run(quantizer(route="open"), NONE)) == []


def test_leaves_casts_and_detached_weights_to_others() -> None:
    for kind in ("cast", "detached", "plain"):
        assert judge(run(frozen(kind=kind), NONE)) == []


def test_weights_that_are_not_trained_are_silent() -> None:
    on_purpose: list[Parameter] = [
        parameter("weight", gradient=NONE, trainable=False),
        parameter("weight", gradient=NONE, optimizer=None),
    ]
    for weight in on_purpose:
        assert judge(evidence(weight, parameter("bias"), quantizers=(frozen(),))) == []


def test_no_other_rule_tells_it_again() -> None:
    severed = run(frozen(), NONE)
    assert MissingGradient.criterion(severed) == []
    assert SeveredGradient.criterion(run(frozen(route="zero derivative"), ZEROS)) == []
    functional = run(frozen(), NONE, optimizers=(optimizer(stale=("weight",)),))
    assert StaleOptimizer.criterion(functional) == []
    assert len(judge(functional)) == 1


# ---------------------------------------------------------------------- quantized buffers


def buffer(name: str = "body.0.codes", **changes: Any) -> Quantizer:
    lost = {"route": "buffer", "carries_gradient": True, "first": None, "last": None}
    return quantizer(name, **{**lost, **changes})


def beside(*members: Parameter, **changes: Any) -> Evidence:
    return evidence(parameter("head.weight", shape=(4, 16)), *members, quantizers=(buffer(**changes),))


def test_warns_of_a_drawn_weight_that_is_a_buffer() -> None:
    (finding,) = judge(beside())
    assert finding.severity == "warning"
    assert [(s.kind, s.name) for s in finding.subjects] == [("buffer", "body.0.codes")]
    assert "no parameter is left that could be trained" in finding.message


def test_a_buffer_that_was_trained_or_loaded_is_frozen_on_purpose() -> None:
    assert judge(beside(was_trained=True)) == []


def test_a_buffer_through_which_nothing_is_trained_is_silent() -> None:
    assert judge(beside(carries_gradient=False)) == []


@pytest.mark.parametrize(
    ("name", "shape", "found"),
    [
        ("body.0.lora_a", (4, 64), False),
        ("body.lora_a", (4, 64), False),
        ("body.0.bias", (64,), True),
        ("body.1.weight", (64, 64), True),
    ],
)
def test_a_matrix_beside_a_buffer_is_an_adapter(name: str, shape: tuple[int, ...], found: bool) -> None:
    assert len(judge(beside(parameter(name, shape=shape)))) == found


def test_a_buffer_that_is_only_cast_is_no_quantized_weight() -> None:
    assert judge(beside(kind="cast")) == []


@pytest.mark.parametrize("holder", ["body.base", "body.other"])
def test_what_adapts_a_matrix_goes_for_the_bias_of_its_module(holder: str) -> None:
    adapter = parameter("body.lora_a", shape=(4, 24))
    head = parameter("head.weight", shape=(4, 16))
    bias, codes = buffer(f"{holder}.bias", numel=24), buffer("body.base.codes", numel=2304)
    findings = judge(evidence(head, adapter, quantizers=(codes, bias)))
    # of another module, without a matrix of its own, the small buffer stands alone
    assert len(findings) == (holder == "body.other")


def test_the_cause_is_where_the_weight_enters_else_where_it_is_rounded_else_where_it_is_used() -> None:
    used = Place(file="layers.py", line=99)
    for changes, line in (({}, 40), ({"place": None}, 7), ({"place": None, "rounding": None}, 99)):
        (finding,) = judge(run(frozen(used_at=used, **changes), NONE))
        assert [loc.place.line for loc in finding.locations if loc.role == "cause"] == [line]
