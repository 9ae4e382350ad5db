from __future__ import annotations

import dataclasses
from typing import Any

from precdoctor.evidence import Backward, Gradient, Parameter
from precdoctor.rules.missing_gradient import MissingGradient
from tests.rules.build import evidence, optimizer, parameter

judge = MissingGradient.criterion


def without(name: str = "quantized.weight", **changes: Any) -> Parameter:
    return parameter(name, **{"gradient": Gradient(absent=20), **changes})


def reaching(*names: str) -> dict[str, Any]:
    return {"backward": Backward(reaches=names)}


def test_finds_a_used_parameter_whose_gradient_stays_none() -> None:
    (finding,) = judge(evidence(without(), parameter(), **reaching("weight")))
    assert finding.severity == "error"
    assert [s.name for s in finding.subjects] == ["quantized.weight"]
    assert ".grad is None at all 20 observed steps" in finding.message
    assert "64 elements" in finding.message


def test_an_unused_module_is_a_note() -> None:
    (finding,) = judge(evidence(without(used=False), parameter(), **reaching("weight")))
    assert finding.severity == "note"


def test_an_unobserved_module_is_a_warning() -> None:
    (finding,) = judge(evidence(without(used=None), parameter(), **reaching("weight")))
    assert finding.severity == "warning"


def test_it_is_an_error_when_no_parameter_of_the_optimizer_gets_one() -> None:
    (finding,) = judge(evidence(without("a", used=None), without("b", used=False), **reaching()))
    assert finding.severity == "error"
    assert len(finding.subjects) == 2


def test_tells_a_gradient_that_was_cleared_too_early() -> None:
    (finding,) = judge(evidence(without(), parameter(), **reaching("quantized.weight", "weight")))
    assert "clears the gradient between backward and step" in finding.message
    assert finding.prescriptions[0].remedy == "keep-gradient"


def test_is_silent_where_a_gradient_was_ever_seen() -> None:
    seen = Gradient(format="float32", present=1, absent=19)
    assert judge(evidence(without(gradient=seen), parameter())) == []


def test_is_silent_about_few_steps_and_about_what_is_frozen_on_purpose() -> None:
    assert judge(evidence(without(gradient=Gradient(absent=2)), parameter())) == []
    assert judge(evidence(without(trainable=False), parameter())) == []
    assert judge(evidence(without(optimizer=None), parameter())) == []


def test_leaves_a_detached_loss_to_pd202_and_stale_tensors_to_pd406() -> None:
    assert judge(evidence(without(), backward=Backward(detached=True))) == []
    stale = dataclasses.replace(optimizer(), stale=("quantized.weight",))
    assert judge(evidence(without(), parameter(), optimizers=(stale,))) == []
