from __future__ import annotations

from typing import Any

import pytest

from precdoctor.evidence import Place, Snapshot, Tensor
from precdoctor.rules.finding import Finding
from precdoctor.rules.truncated_checkpoint import TruncatedCheckpoint
from tests.rules import checkpoints
from tests.rules.build import evidence, parameter

SAVED, CAST, LOADED = (Place(file="train.py", line=n) for n in (15, 14, 26))


def snapshot(**changes: Any) -> Snapshot:
    values: dict[str, Any] = {
        "kind": "saved",
        "trained": "float32",
        "format": "bfloat16",
        "place": SAVED,
        "cast": CAST,
        "times": 1,
        "parameters": ("0.weight", "0.bias"),
        "numel": 1088,
        "changed_share": 1.0,
        "relative_error": 0.0015,
    }
    return Snapshot(**{**values, **changes})


def judged(*snapshots: Snapshot) -> list[Finding]:
    return TruncatedCheckpoint.criterion(evidence(parameter(format="float32"), snapshots=snapshots))


def test_rounded_weights_beside_the_optimizers_state_are_a_warning() -> None:
    (finding,) = judged(snapshot(with_optimizer=True))
    assert finding.severity == "warning"
    assert [(x.place, x.role) for x in finding.locations] == [(CAST, "cause"), (SAVED, "site")]
    assert [s.name for s in finding.subjects] == ["0.weight", "0.bias"]
    assert "1.5 steps of training" in finding.message


def test_rounded_weights_alone_are_for_use() -> None:
    assert not judged(snapshot())


def test_rounded_weights_beside_the_full_ones_are_healthy() -> None:
    assert not judged(snapshot(with_optimizer=True, with_full=True))


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_a_run_that_goes_on_from_them_is_an_error(with_optimizer: bool) -> None:
    (finding,) = judged(snapshot(with_optimizer=with_optimizer, loaded_back=LOADED))
    assert finding.severity == "error"
    assert f"this run goes on from there at {LOADED.file}:{LOADED.line}" in finding.message


def test_rounded_weights_that_come_with_the_state_of_their_optimizer_are_a_warning() -> None:
    loaded = snapshot(kind="loaded", place=LOADED, cast=None, with_optimizer=True)
    (finding,) = judged(loaded)
    assert (finding.severity, finding.locations[0].place) == ("warning", LOADED)
    assert not judged(snapshot(kind="loaded", place=LOADED))


def test_what_was_seen_to_be_saved_is_told_once() -> None:
    saved = snapshot(with_optimizer=True, loaded_back=LOADED)
    assert len(judged(saved, snapshot(kind="loaded", place=LOADED, with_optimizer=True))) == 1


def rounded(**changes: Any) -> Snapshot:
    values = {"times": 20, "changed_share": 0.9, "relative_error": 0.05, "edq": 0.1, "regained": 0.01}
    return snapshot(**{"kind": "rounded", "place": LOADED, **values, **changes})


@pytest.mark.parametrize(
    ("changes", "severity"),
    [
        ({}, "error"),
        ({"edq": 0.8}, "warning"),
        ({"edq": 0.95}, None),
        ({"times": 3}, "error"),
        ({"times": 2}, None),
        ({"others": 5}, "error"),
        ({"others": 6}, None),
        ({"regained": 0.98}, None),
        ({"regained": None}, None),
        ({"relative_error": 0.0038}, None),  # what one rounding to bfloat16 may cost
        ({"relative_error": 0.0038, "format": "float16"}, "error"),
    ],
)
def test_weights_that_go_on_from_their_rounded_values_again_and_again(
    changes: dict[str, Any], severity: str | None
) -> None:
    found = judged(rounded(**changes))
    assert [f.severity for f in found] == [severity][: severity is not None]
    for finding in found:
        assert [(x.place, x.role) for x in finding.locations] == [(CAST, "cause"), (LOADED, "site")]


def test_the_save_is_the_cause_where_no_cast_was_seen() -> None:
    (finding,) = judged(rounded(cast=None, saved=SAVED))
    assert [(x.place, x.role) for x in finding.locations] == [(SAVED, "cause"), (LOADED, "site")]
    assert f"by way of a file at {SAVED.file}:{SAVED.line}" in finding.message


def test_what_is_saved_beside_an_optimizer_and_loaded_at_that_line_is_told_once() -> None:
    (finding,) = judged(snapshot(with_optimizer=True, loaded_back=LOADED), rounded())
    assert "optimizer's state" in finding.message


def in_files(*tensors: Tensor, **changes: Any) -> list[Finding]:
    return TruncatedCheckpoint.criterion(checkpoints.evidence(*tensors, **changes))


def narrowed(**changes: Any) -> Tensor:
    way = checkpoints.travel(rounded=True, rounding_share=0.9, rounding_error=0.0016)
    return checkpoints.moved(first=checkpoints.stored(format="float32"), travel=way, **changes)


def test_weights_that_the_second_file_has_in_a_lower_format() -> None:
    (for_use,) = in_files(narrowed())
    assert for_use.severity == "note"
    assert "rounding changes 90 % of the elements" in for_use.message
    assert "nothing else has changed" in for_use.message
    (to_go_on,) = in_files(narrowed(), optimizers=("AdamW",))
    assert to_go_on.severity == "warning"
    assert not in_files(narrowed(has_master=True), optimizers=("AdamW",))


def disguised(name: str = "w", fits: str = "bfloat16", **changes: Any) -> Tensor:
    last = checkpoints.stored(format="float32", fits=fits, **changes)
    return checkpoints.alone(checkpoints.moved(name, first=last))


def test_float32_that_holds_bfloat16() -> None:
    (finding,) = in_files(disguised(), files=1)
    assert (finding.severity, finding.measured["format"]) == ("note", "bfloat16")
    (finding,) = in_files(disguised(), files=1, optimizers=("AdamW",))
    assert finding.severity == "warning"


def test_a_few_tensors_of_short_numbers_are_no_disguise() -> None:
    small = disguised("scale", shape=(16,))
    assert not in_files(small, disguised("w", fits=""), files=1, optimizers=("AdamW",))


def test_bfloat16_that_was_always_bfloat16_is_healthy() -> None:
    assert not in_files(checkpoints.moved(), optimizers=("AdamW",))
