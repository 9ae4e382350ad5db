"""The sentence at the end says what the numbers say."""

from __future__ import annotations

import math
import random
from typing import Literal

import pytest

from precdoctor.comparison.result import FormatResult
from precdoctor.comparison.statistics import paired, standard_error
from precdoctor.comparison.verdict import sentences, status

chance = random.Random(0)
EXACT = [chance.gauss(2.458, 0.4) for _ in range(100)]
EXACT = [one + 2.458 - sum(EXACT) / 100 for one in EXACT]


def shifted(by: float, noise: float) -> list[float]:
    steps = [chance.gauss(0, noise) for _ in EXACT]
    middle = sum(steps) / len(steps)
    return [one + by + step - middle for one, step in zip(EXACT, steps, strict=True)]


def of(
    name: str, losses: list[float], kind: Literal["reference", "computed", "weights"] = "computed"
) -> FormatResult:
    return FormatResult(
        name=name, kind=kind, stored=name, losses=tuple(losses), loss=sum(losses) / len(losses),
        loss_error=standard_error(losses),
        difference=None if kind == "reference" else paired(losses, EXACT[: len(losses)]),
        held_bytes=1, working_bytes=None, seconds_per_sample=None, time_ratio=None, changed_share=None,
        predictions=0,
    )  # fmt: skip


REFERENCE = of("float32", EXACT, "reference")


def test_the_documents_case_ends_in_the_documents_sentence() -> None:
    """2.455 in bfloat16 and 2.458 in float32 over 100 samples."""
    found = sentences([REFERENCE, of("bfloat16", shifted(-0.003, 0.03))])
    assert found == (
        "bfloat16 and float32 agree within noise (2.455 / 2.458): if training fails, it is not inference "
        "precision.",
    )


@pytest.mark.parametrize(
    ("by", "noise", "expected"),
    [
        (0.0, 0.0, "agrees"),
        (0.001, 0.03, "agrees"),
        (0.003, 0.005, "small"),
        (0.3, 0.1, "differs"),
        (0.03, 0.02, "differs"),
        (0.02, 0.4, "open"),
    ],
)
def test_status_tells_noise_from_little_from_much_from_unknown(
    by: float, noise: float, expected: str
) -> None:
    assert status(of("bfloat16", shifted(by, noise)), REFERENCE.loss) == expected


def test_a_small_difference_is_said_with_its_size() -> None:
    found = sentences([REFERENCE, of("float16", shifted(0.003, 0.005))])
    assert "0.12 % of the loss: beyond noise, and little." in found[0]
    assert found[-1].startswith("float16 differs from float32 beyond noise, but by 0.12 % of the loss")
    assert found[-1].endswith("it is not inference precision.")


def test_a_large_difference_is_not_explained_away() -> None:
    found = sentences([REFERENCE, of("bfloat16", shifted(0.5, 0.1)), of("float16", shifted(0, 0.001))])
    assert found[-1].startswith("Inference precision matters: in bfloat16")
    assert "float16 makes no difference that matters" in found[-1]
    assert "it is not inference precision" not in found[-1]


def test_what_can_not_be_told_is_not_called_equal() -> None:
    found = sentences([REFERENCE, of("bfloat16", shifted(0.02, 0.6))])
    assert "can't tell bfloat16 from float32" in found[-1]
    assert "Give more, with --samples." in found[-1]


def test_a_loss_that_is_not_finite_is_counted() -> None:
    losses = shifted(0, 0.01)
    losses[3] = losses[7] = math.nan
    found = sentences([REFERENCE, of("float16", losses)])
    assert found[0].startswith("float16: the loss is not finite in 2 of 100")
    assert found[-1].startswith("Inference precision matters: in float16")


def test_formats_of_weights_do_not_decide_where_others_do() -> None:
    found = sentences([REFERENCE, of("bfloat16", shifted(0, 0.01)), of("nf4", shifted(0.5, 0.1), "weights")])
    assert found[0].startswith("nf4 (weights only, simulated) is 0.50")
    assert found[-1].startswith("bfloat16 and float32 agree within noise")
    alone = sentences([REFERENCE, of("nf4", shifted(0.5, 0.1), "weights")])
    assert alone[-1].startswith("Inference precision matters: in nf4")
