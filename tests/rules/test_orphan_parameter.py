from __future__ import annotations

from precdoctor.evidence import Backward, Gradient
from precdoctor.rules.orphan_parameter import OrphanParameter
from tests.rules.build import BUILT, LR, evidence, optimizer, parameter, weight
from tests.rules.test_stale_optimizer import orphan

judge = OrphanParameter.criterion


def test_warns_of_a_parameter_made_after_the_optimizer() -> None:
    (finding,) = judge(evidence(parameter(), orphan("head.weight")))
    assert finding.severity == "warning"
    assert "created after the optimizer" in finding.message
    assert [(location.role, location.place) for location in finding.locations] == [
        ("cause", LR),
        ("site", BUILT),
    ]


def test_warns_of_a_module_that_the_model_does_not_know() -> None:
    (finding,) = judge(evidence(parameter(), orphan(created_after_optimizer=False, in_model=False)))
    assert finding.severity == "warning"
    assert "not registered in the model" in finding.message


def test_a_parameter_left_out_of_the_groups_is_a_note() -> None:
    (finding,) = judge(evidence(parameter(), orphan(created_after_optimizer=False)))
    assert finding.severity == "note"
    assert finding.prescriptions[0].remedy == "freeze"


def test_an_optimizer_without_a_model_misses_nothing() -> None:
    image = parameter("image", module="")
    (finding,) = judge(evidence(image, orphan(created_after_optimizer=False, in_model=False)))
    assert finding.severity == "note"


def test_is_silent_about_masters_motion_by_hand_and_missing_gradients() -> None:
    assert judge(evidence(parameter(), orphan(copy_of_master=True))) == []
    assert judge(evidence(parameter(), orphan(weight=weight(moved_share=0.01)))) == []
    assert judge(evidence(parameter(), orphan(gradient=Gradient(absent=9)))) == []


def test_is_silent_about_what_the_loss_does_not_reach() -> None:
    old = orphan(created_after_optimizer=False, in_model=False)
    assert judge(evidence(parameter(), old, backward=Backward(reaches=("weight",)))) == []


def test_one_look_does_not_show_that_nothing_moves() -> None:
    once = orphan(gradient=Gradient(format="float32", present=1))
    assert judge(evidence(parameter(), once)) == []


def test_is_silent_before_an_optimizer_has_stepped() -> None:
    assert judge(evidence(parameter(), orphan(), optimizers=(optimizer(steps=2),))) == []


def test_a_network_that_runs_beside_the_model_is_a_note() -> None:
    for inside, severity in ((None, "warning"), (True, "warning"), (False, "note")):
        other = orphan(created_after_optimizer=False, in_model=False, used_by_model=inside)
        assert [f.severity for f in judge(evidence(parameter(), other))] == [severity]
