from __future__ import annotations

import inspect

import pytest

from precdoctor.remedies import REMEDIES, Dose, Remedy
from precdoctor.remedies.catalogue import remedy_of
from precdoctor.remedies.group_lr import GroupLr
from precdoctor.remedies.reinit import Reinit

IDS = ["autocast", "master-weights", "stochastic-rounding", "kahan", "float32-state", "float32-island"]
IDS += ["group-lr", "reinit", "eps", "beta2", "loss-scaling", "plain-optimizer"]
IDS += ["ste", "refresh-cache", "float32-latent", "block-scale", "stochastic-gradients"]
IDS += ["keep-float32", "re-tie"]
SECTIONS = ["What it buys", "Bytes per parameter", "When not", "By hand", "References"]


def test_the_catalogue_lists_every_remedy_in_order() -> None:
    assert [remedy.id for remedy in REMEDIES] == IDS
    assert [remedy_of(name).id for name in [*IDS, "float32"]] == [*IDS, "float32"]


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda remedy: remedy.id)
def test_a_page_has_its_sections_and_code_that_compiles(remedy: type[Remedy]) -> None:
    page = inspect.cleandoc(remedy.__doc__ or "")
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == SECTIONS
    assert page.splitlines()[0].endswith(".")
    code = page.split("```python\n", 1)[1].split("```", 1)[0]
    compile(code, remedy.id, "exec")


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda remedy: remedy.id)
def test_a_page_states_the_bytes_that_are_estimated(remedy: type[Remedy]) -> None:
    page = inspect.cleandoc(remedy.__doc__ or "")
    stated = page.split("## Bytes per parameter\n\n")[1].split()[0].rstrip(".")
    assert float(stated) == remedy.extra_bytes(16)


@pytest.mark.parametrize(
    ("remedy", "settings", "label"),
    [
        ("autocast", {}, "autocast"),
        ("group-lr", {"factor": 10.0}, "group-lr x10"),
        ("group-lr", {"factor": 22.627}, "group-lr x22.6"),
        ("reinit", {"factor": 0.1}, "reinit x0.1"),
        ("reinit", {"factor": 0.00044}, "reinit x4.4e-4"),
        ("eps", {"eps": 1e-4}, "eps 1e-4"),
        ("beta2", {"beta2": 0.99}, "beta2 0.99"),
        ("loss-scaling", {"scale": 2.0**20}, "loss-scaling 1.05e6"),
        ("block-scale", {"format": "int8:64"}, "block-scale int8:64"),
        ("keep-float32", {"layers": "head.weight"}, "keep-float32 head.weight"),
        ("keep-float32", {"layers": "a,b,c"}, "keep-float32 a and 2 more"),
    ],
)
def test_a_label_is_the_remedy_with_its_dose(
    remedy: str, settings: dict[str, float | str], label: str
) -> None:
    assert Dose(remedy=remedy, settings=settings).label == label


def test_the_usual_advice_is_tried_beside_the_solved_factor() -> None:
    assert GroupLr.doses({"factor": 34.0}) == ({"factor": 34.0}, {"factor": 10.0})
    assert GroupLr.doses({"factor": 9.0}) == ({"factor": 9.0},)
    assert GroupLr.doses({}) == ({"factor": 10.0},)
    assert Reinit.doses({"factor": 0.03}) == ({"factor": 0.03}, {"factor": 0.1})


def test_a_missing_number_is_named() -> None:
    with pytest.raises(ValueError, match="group-lr has to be told its factor"):
        Dose(remedy="group-lr").number("factor")
