from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Backward, Gradient, Parameter, Place
from precdoctor.rules.orphan_parameter import OrphanParameter
from precdoctor.rules.stale_optimizer import StaleOptimizer
from tests.rules.build import LR, evidence, optimizer, parameter, weight

judge = StaleOptimizer.criterion
STALE = {"optimizers": (optimizer(stale=("AdamW.group0[0]",)),)}


def orphan(name: str = "wte.weight", **changes: Any) -> Parameter:
    values: dict[str, Any] = {
        "optimizer": None,
        "group": None,
        "updates": None,
        "weight": weight(moved_share=0.0),
        "gradient": Gradient(format="float32", present=5),
        "created_after_optimizer": True,
    }
    return parameter(name, **{**values, **changes})


def test_finds_an_optimizer_that_steps_a_replaced_embedding() -> None:
    (finding,) = judge(evidence(parameter(), orphan(), **STALE))
    assert finding.severity == "error"
    assert [s.name for s in finding.subjects] == ["torch.optim.adamw.AdamW", "AdamW.group0[0]", "wte.weight"]
    assert finding.locations[0].place == LR
    assert finding.locations[0].role == "cause"
    assert "wte.weight of the model gets gradients and is in no optimizer" in finding.message


def test_names_the_line_that_replaced_the_parameters() -> None:
    loaded = Place(file="train.py", line=40)
    (finding,) = judge(evidence(parameter(), orphan(replaced=loaded), **STALE))
    assert [x.place for x in finding.locations if x.role == "site"] == [loaded]


def test_tells_the_whole_story_alone() -> None:
    assert OrphanParameter.criterion(evidence(parameter(), orphan(), **STALE)) == []


def test_stale_tensors_alone_are_a_note() -> None:
    (finding,) = judge(evidence(parameter(), **STALE))
    assert finding.severity == "note"


def test_is_silent_without_stale_tensors() -> None:
    assert judge(evidence(parameter(), orphan())) == []


@pytest.mark.parametrize(
    "harmless",
    [
        orphan(copy_of_master=True),
        orphan(trainable=False),
        orphan(gradient=Gradient(absent=5)),
        orphan(gradient=Gradient(format="float32", present=5, all_zero=5)),
        orphan(weight=weight(moved_share=0.5)),
    ],
)
def test_copies_of_masters_and_what_others_move_are_no_orphans(harmless: Parameter) -> None:
    (finding,) = judge(evidence(parameter(), harmless, **STALE))
    assert finding.severity == "note"


def test_a_gradient_left_over_from_another_model_is_no_orphan() -> None:
    old = orphan(created_after_optimizer=False)
    (finding,) = judge(evidence(parameter(), old, **STALE, backward=Backward(reaches=("weight",))))
    assert finding.severity == "note"
