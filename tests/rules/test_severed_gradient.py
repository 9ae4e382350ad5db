from __future__ import annotations

from typing import Any

from precdoctor.evidence import Backward, Gradient, Parameter, Place
from precdoctor.rules.severed_gradient import SeveredGradient
from tests.rules.build import evidence, parameter

judge = SeveredGradient.criterion
SITE, CUT = Place(file="train.py", line=38), Place(file="train.py", line=35, certain=False)


def zero(name: str = "encoder.weight", steps: int = 20, **changes: Any) -> Parameter:
    gradient = Gradient(format="float32", present=steps, all_zero=steps)
    return parameter(name, **{"gradient": gradient, **changes})


def test_finds_a_loss_that_reaches_no_parameter() -> None:
    detached = Backward(place=SITE, detached=True, cuts=(CUT,))
    lost = [parameter(n, gradient=Gradient(absent=150)) for n in ("0.weight", "0.bias")]
    (finding,) = judge(evidence(*lost, backward=detached))
    assert finding.severity == "error"
    assert [(location.role, location.place.line) for location in finding.locations] == [
        ("cause", 35),
        ("site", 38),
    ]
    assert "train.py:38 reaches no parameter" in finding.message
    assert "likely cut at train.py:35" in finding.message


def test_a_detached_first_backward_is_no_illness_while_gradients_arrive() -> None:
    assert judge(evidence(parameter(), backward=Backward(place=SITE, detached=True))) == []


def test_finds_zeros_behind_a_node_of_zero_derivative() -> None:
    rounding = Backward(place=SITE, zero_derivative=("encoder.weight",), zero_nodes=("RoundBackward0",))
    (finding,) = judge(evidence(zero(), parameter(), backward=rounding))
    assert finding.severity == "error"
    assert "through RoundBackward0 only" in finding.message
    assert [p.remedy for p in finding.prescriptions] == ["ste"]


def test_zeros_without_such_a_node_are_a_note_after_ten_steps() -> None:
    (finding,) = judge(evidence(zero(), parameter()))
    assert finding.severity == "note"
    assert judge(evidence(zero(steps=9), parameter())) == []


def test_is_silent_about_zeros_that_end() -> None:
    first = Gradient(format="float32", present=20, all_zero=1)
    assert judge(evidence(zero(gradient=first), parameter())) == []


def test_is_silent_about_a_rounding_beside_an_open_path() -> None:
    around = Backward(reaches=("weight",), zero_nodes=("RoundBackward0",))
    assert judge(evidence(parameter(), backward=around)) == []


def test_names_underflow_where_the_gradient_is_float16() -> None:
    flushed = Gradient(format="float16", present=20, all_zero=20)
    (finding,) = judge(evidence(zero(gradient=flushed)))
    assert "float16 gradients below 3e-8" in finding.message
