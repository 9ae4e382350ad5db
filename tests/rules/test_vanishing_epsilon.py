from __future__ import annotations

import dataclasses
from typing import Any

from precdoctor.evidence import Evidence, Parameter, State
from precdoctor.rules.vanishing_epsilon import VanishingEpsilon
from tests.rules.build import bench, evidence, group, optimizer, parameter, weight

judge = VanishingEpsilon.criterion


def half(**changes: Any) -> Parameter:
    return parameter(**{"format": "float16", **changes})


def adam(
    *parameters: Parameter, eps: float = 1e-8, finite: bool | None = False, fmt: str = "float16"
) -> Evidence:
    tested = (bench(format=fmt, zero_gradient_finite=finite),)
    return evidence(*parameters, optimizers=(optimizer(groups=(group(eps=eps),), benches=tested),))


def test_finds_the_default_eps_in_float16() -> None:
    (finding,) = judge(adam(half()))
    assert finding.severity == "error"
    assert "eps = 1e-8 of AdamW is 0 in float16, whose smallest positive value is 6e-8" in finding.message


def test_prescribes_an_eps_that_survives_in_the_format() -> None:
    (finding,) = judge(adam(half()))
    assert next(p for p in finding.prescriptions if p.remedy == "eps").settings == {"eps": 1e-4}


def test_counts_weights_that_are_gone_already() -> None:
    (finding,) = judge(adam(half(weight=weight(non_finite=60))))
    assert "60 of 64 watched weights" in finding.message


def test_is_silent_where_the_optimizer_stays_finite_on_the_bench() -> None:
    assert judge(adam(half(weight=weight(non_finite=60)), finite=True)) == []


def test_needs_other_proof_where_the_bench_could_not_ask() -> None:
    assert judge(adam(half(), finite=None)) == []
    assert judge(adam(half(weight=weight(non_finite=1)), finite=None))


def test_is_silent_about_an_eps_that_survives() -> None:
    assert judge(adam(half(), eps=1e-4)) == []
    assert judge(adam(parameter(), fmt="bfloat16")) == []
    assert judge(adam(half(), eps=0.0)) == []


def test_sees_a_second_moment_in_float16_beside_float32_weights() -> None:
    given = adam(parameter(format="float32", cast=None), fmt="float32")
    state = State(parameter="weight", key="v", role="second moment", format="float16")
    (finding,) = judge(dataclasses.replace(given, states=(state,)))
    assert finding.measured["format"] == "float16"
