from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Place, SharedData, Tie
from precdoctor.rules.broken_tie import BrokenTie
from tests.rules import checkpoints
from tests.rules.build import evidence, parameter

MADE, BROKEN = Place(file="model.py", line=30), Place(file="train.py", line=8)
judge = BrokenTie.criterion


def tie(**changes: Any) -> Tie:
    """Return a head that was cloned from its embedding before the first step, both trained since."""
    values: dict[str, Any] = {
        "kept": "embedding.weight",
        "apart": "head.weight",
        "numel": 1000,
        "kind": "parameter",
        "format": "float32",
        "extra_bytes": 4000,
        "how": "assigned",
        "made": MADE,
        "broken": BROKEN,
        "similarity": 1.0,
        "last_step": 10,
        "distance_last": 0.07,
        "kept_moved": 0.05,
        "apart_moved": 0.05,
        "difference_moved": 0.07,
    }
    return Tie(**{**values, **changes})


def quantized(**changes: Any) -> Tie:
    """Return a head with values quantized from the embedding, 18 dB below it."""
    values: dict[str, Any] = {"similarity": 0.99, "distance_first": 0.12, "distance_last": 0.14}
    return tie(**{**values, **changes})


def found(*ties: Tie) -> list[tuple[str, list[str]]]:
    return [
        (f.severity, [s.name for s in f.subjects]) for f in judge(evidence(parameter(), ties=tuple(ties)))
    ]


def test_warns_of_a_copy_that_is_trained_apart() -> None:
    (finding,) = judge(evidence(parameter(), ties=(tie(),)))
    assert finding.severity == "warning"
    assert [(location.role, location.place) for location in finding.locations] == [
        ("cause", BROKEN),
        ("site", MADE),
    ]
    assert finding.message.startswith(
        "embedding.weight and head.weight were one parameter at model.py:30 and are two tensors of 1,000 "
        "elements since head.weight became another one at train.py:8: equal at step 0, 7 % of the norm apart"
    )
    assert "4 kB" in finding.message
    assert finding.measured["extra_bytes"] == 4000


@pytest.mark.parametrize("how", ["load_state_dict", "from_pretrained", "module.to"])
def test_what_loading_untied_nobody_meant(how: str) -> None:
    assert found(tie(how=how)) == [("error", ["embedding.weight", "head.weight"])]


def test_a_buffer_beside_a_moving_weight_is_an_error() -> None:
    buffer = quantized(kind="buffer", trainable=False, apart="head.codes", apart_moved=0.0)
    (finding,) = judge(evidence(parameter(), ties=(buffer,)))
    assert finding.severity == "error"
    assert [(s.kind, s.name) for s in finding.subjects] == [
        ("parameter", "embedding.weight"),
        ("buffer", "head.codes"),
    ]
    assert "head.codes, a buffer without gradient, has not moved" in finding.message


def test_puts_what_one_line_broke_into_one_finding() -> None:
    other = tie(kept="a.weight", apart="b.weight")
    assert found(tie(), other) == [("warning", ["embedding.weight", "head.weight", "a.weight", "b.weight"])]
    elsewhere = tie(kept="a.weight", apart="b.weight", broken=MADE)
    assert len(found(tie(), elsewhere)) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"similarity": 0.03},  # drawn anew
        {"similarity": None},  # constants say nothing
        {"last_step": 2},
        {"difference_moved": 0.0, "distance_last": 0.0},  # copied into each other after each step
        {"difference_moved": 1e-5, "distance_last": 1e-5},
    ],
)
def test_is_silent_about_an_exact_copy(changes: dict[str, Any]) -> None:
    assert found(tie()) != []
    assert found(tie(**changes)) == []


def test_a_copy_that_is_quantized_anew_in_each_step_follows() -> None:
    assert found(quantized(difference_moved=0.07)) != []
    follows = {"distance_last": 0.121, "apart_moved": 0.06, "difference_moved": 0.05}
    assert found(quantized(**follows)) == []


def test_a_copy_at_rest_may_be_in_a_dead_zone_for_a_while() -> None:
    assert found(quantized(apart_moved=0.0, kept_moved=0.005)) == []
    assert found(quantized(apart_moved=0.0, kept_moved=0.05)) != []
    assert found(quantized(apart_moved=0.0, kept_moved=0.0)) == []


@pytest.mark.parametrize(
    ("by", "broken", "severities"),
    [("storage", True, ["warning"]), ("data", True, ["note"]), ("storage", False, []), ("storage", None, [])],
)
def test_names_that_one_checkpoint_has_one_tensor_for(
    by: Any, broken: bool | None, severities: list[str]
) -> None:
    shared = SharedData(names=("embed.weight", "head.weight"), by=by, broken=broken)
    found = BrokenTie.criterion(checkpoints.evidence(checkpoints.moved(), shared=(shared,)))
    assert [f.severity for f in found] == severities
    assert all([s.name for s in f.subjects] == ["embed.weight", "head.weight"] for f in found)
