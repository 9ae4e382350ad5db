from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from precdoctor.evidence import Evidence, Gradient, Parameter, Place, Predicted, Predictions, Quantizer
from precdoctor.rules.context_free_plateau import ContextFreePlateau, plateau_of, still_share, still_weights
from tests.rules.build import evidence, norm, parameter

LOSS, CUT = Place(file="train.py", line=74), Place(file="layers.py", line=23)
judge = ContextFreePlateau.criterion


def seen(step: int, **changes: Any) -> Predicted:
    """Return the predictions of a step of the four-bit model as reported."""
    values: dict[str, Any] = {
        "positions": 1024,
        "repeated": 800,
        "accuracy": 0.38,
        "loss": 4.7 if step >= 500 else 5.4,
        "top_prediction_share": 0.11,
        "top_label_share": 0.06,
        "by_token": 0.89,
    }
    return Predicted(step=step, **{**values, **changes})


def predictions(late: dict[str, Any] | None = None, last: int = 1000, **changes: Any) -> Predictions:
    """Return a plateau; ``late`` changes the steps of the last half."""
    early = [seen(step * last // 1000) for step in (0, 100, 300, 500)]
    steps = [
        dataclasses.replace(s, loss=5.4) if s.step > 0 else dataclasses.replace(s, accuracy=0.0, loss=7.0)
        for s in early
    ]
    later = [seen(step * last // 1000, **{"loss": 4.7, **(late or {})}) for step in (700, 1000)]
    values: dict[str, Any] = {"ceiling": 0.37, "majority": 0.06, "steps": (*steps, *later)}
    return Predictions(place=LOSS, classes=1024, **{**values, **changes})


def severed(name: str = "block.weight", **changes: Any) -> tuple[Parameter, Quantizer]:
    """Return a weight of 3,000 elements that its quantizer cuts off."""
    quantizer = Quantizer(
        parameter=name, kind="quantizer", numel=3000, format="float32", route="cut", place=CUT, seen=9
    )
    member = parameter(name, format="float32", shape=(3000,), gradient=Gradient(absent=100), **changes)
    return member, quantizer


def ill(*given: Predictions) -> Evidence:
    member, quantizer = severed()
    embedding = parameter("embedding.weight", shape=(1000,), format="float32")
    return evidence(embedding, member, quantizers=(quantizer,), predictions=given or (predictions(),))


def healthy(*given: Predictions) -> Evidence:
    return evidence(parameter("embedding.weight", shape=(1000,)), predictions=given or (predictions(),))


def test_warns_of_a_plateau_under_weights_at_rest() -> None:
    (finding,) = judge(ill())
    assert finding.severity == "warning"
    assert [s.name for s in finding.subjects] == ["block.weight"]
    assert [(location.role, location.place) for location in finding.locations] == [
        ("cause", CUT),
        ("site", LOSS),
    ]
    assert finding.message == (
        "The predictions at train.py:74 are fixed by the current token: 89 % are the commonest one after the "
        "same token elsewhere, and the accuracy is no higher than the 37 % that it can give alone. At steps "
        "700 to 1,000 38 % are right, 38 % at steps 300 to 500, while the loss fell from 5.4 to 4.7. 75 % of "
        "the trainable weights do not learn: block.weight."
    )
    assert finding.measured["still_share"] == 0.75
    assert [p.remedy for p in finding.prescriptions] == ["ste"]


@pytest.mark.parametrize(
    "late",
    [
        {"by_token": 0.6},  # it looks at more than the current token
        {"by_token": None},
        {"accuracy": 0.45},  # above the ceiling
        {"loss": 5.4},  # nothing is learned any more
    ],
)
def test_is_silent_where_the_plateau_is_none(late: dict[str, Any]) -> None:
    assert judge(ill(predictions(late))) == []


def test_accuracy_that_rises_is_no_plateau() -> None:
    low = [seen(step, accuracy=0.2, loss=5.4) for step in (0, 250, 500)]
    late = [seen(step, accuracy=0.3) for step in (700, 1000)]
    assert judge(ill(predictions(steps=(*low, *late)))) == []
    flat = [dataclasses.replace(s, accuracy=0.3) for s in low]
    assert len(judge(ill(predictions(steps=(*flat, *late))))) == 1


def test_a_sample_allows_for_its_error() -> None:
    # standard error of 2,048 positions at 0.38: 0.011
    assert judge(ill(predictions({"accuracy": 0.39}))) != []
    assert judge(ill(predictions({"accuracy": 0.42}))) == []


def test_a_young_net_is_not_called_ill() -> None:
    assert judge(ill(predictions(last=90))) == []
    assert len(judge(ill(predictions(last=100)))) == 1


def test_without_weights_at_rest_it_is_a_note_and_only_when_nearly_all_is_fixed() -> None:
    assert judge(healthy()) == []
    (finding,) = judge(healthy(predictions({"by_token": 0.99})))
    assert finding.severity == "note"
    assert finding.prescriptions == ()
    assert judge(healthy(predictions({"by_token": 0.99}, last=200))) == []


def test_few_weights_at_rest_are_no_reason() -> None:
    member, quantizer = severed()
    large = parameter("embedding.weight", shape=(100, 200))
    small = evidence(large, member, quantizers=(quantizer,), predictions=(predictions(),))
    assert judge(small) == []


def one_class(**changes: Any) -> Predictions:
    values = {"accuracy": 0.93, "top_prediction_share": 0.99, "top_label_share": 0.93, "by_token": None}
    steps = [seen(step, **{**values, **changes}) for step in (0, 300, 500, 700, 1000)]
    early = [
        dataclasses.replace(s, loss=0.5) if s.step <= 500 else dataclasses.replace(s, loss=0.3) for s in steps
    ]
    return Predictions(place=LOSS, classes=10, steps=tuple(early), majority=0.93)


def test_one_class_for_everything_is_a_plateau_too() -> None:
    (finding,) = judge(ill(one_class()))
    assert finding.severity == "warning"
    assert finding.measured["kind"] == "majority"
    assert finding.message.startswith("99 % of the predictions at train.py:74 are one class, and the")
    assert judge(ill(one_class(accuracy=0.95))) == []
    assert judge(ill(one_class(top_prediction_share=0.85))) == []


def test_an_imbalanced_classifier_is_never_called_ill_for_that() -> None:
    assert [f.severity for f in judge(healthy(one_class()))] == ["note"]
    young = dataclasses.replace(one_class(), steps=one_class().steps[:2])
    assert judge(healthy(young)) == []


def test_knows_what_does_not_learn() -> None:
    gradient = Gradient(absent=100)
    (weight, quantizer) = severed()
    given = evidence(
        parameter("learns", shape=(100,)),
        weight,
        parameter("detached", shape=(200,), gradient=gradient),
        parameter("unused", shape=(5000,), gradient=gradient, used=False),
        parameter("on purpose", shape=(5000,), gradient=gradient, trainable=False),
        norm("norm.weight"),
        quantizers=(quantizer,),
    )
    still = still_weights(given)
    assert [(w.name, w.reason) for w in still] == [
        ("block.weight", "severed"),
        ("detached", "no gradient"),
        ("norm.weight", "frozen"),
    ]
    assert still_share(given, still) == (3000 + 200 + 64) / (3000 + 200 + 64 + 100)


def test_one_step_is_no_plateau() -> None:
    assert plateau_of(Predictions(place=None, classes=3, steps=(seen(0),)), 0.8) is None
    assert plateau_of(Predictions(place=None, classes=3), 0.8) is None
