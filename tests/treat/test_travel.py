"""The travel of weights: what is sampled, how it is kept and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from precdoctor.treat.travel import SAMPLE, Travel, compare, load, save


def f32(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(values, np.float32)


def test_samples_the_stored_values_before_and_after() -> None:
    small = torch.ones(3, dtype=torch.bfloat16)
    large = torch.zeros(200, 100)
    track = Travel({"small": small, "large": large, "ids": torch.zeros(2, dtype=torch.int64)})
    small += 0.0078125
    large += 2.0
    track.note()
    found = track.found()
    assert found["small"].tolist() == [0.0078125] * 3
    assert found["large"].shape == (SAMPLE,)
    assert (found["large"] == 2.0).all()
    assert set(found) == {"small", "large"}


def test_nothing_is_lost_of_parameters_that_are_gone() -> None:
    weight = torch.zeros(4)
    track = Travel({"weight": weight})
    weight += 1
    track.note()
    del weight
    track.note()
    assert track.found()["weight"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("travels", [{}, {"a.b/c": f32(1, 2), "file": f32(3)}, {"empty": f32()}])
def test_what_is_saved_is_what_is_loaded(travels: dict[str, np.ndarray], tmp_path: Path) -> None:
    save(travels, tmp_path / "t.npz")
    again = load(tmp_path / "t.npz")
    assert {name: t.tolist() for name, t in again.items()} == {n: t.tolist() for n, t in travels.items()}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (f32(3, 4), (1.0, 0.0)),
        (f32(0, 0), (0.0, 1.0)),
        (f32(6, 8), (2.0, 1.0)),
        (f32(-4, 3), (0.0, 2**0.5)),  # as far, the other way
        (f32(float("nan"), 0), (None, None)),
    ],
)
def test_compares_with_float32_by_direction_and_distance(
    own: np.ndarray, expected: tuple[float | None, float | None]
) -> None:
    assert compare({"w": own}, {"w": f32(3, 4)}, ("w",)) == pytest.approx(expected)


def test_compares_the_subjects_alone_and_what_both_have() -> None:
    own, float32 = {"a": f32(1), "b": f32(0), "c": f32(1)}, {"a": f32(1), "b": f32(1), "c": f32(1, 1)}
    assert compare(own, float32, ("a",)) == (1.0, 0.0)
    assert compare(own, float32, ()) == pytest.approx((0.5, 0.5**0.5))
    assert compare(own, {"a": f32(0)}, ()) == (None, None)
    assert compare(own, {}, ()) == (None, None)
