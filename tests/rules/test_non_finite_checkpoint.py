from __future__ import annotations

import pytest

from precdoctor.evidence import Tensor
from precdoctor.rules.finding import Finding
from precdoctor.rules.non_finite_checkpoint import NonFiniteCheckpoint
from tests.rules.checkpoints import alone, evidence, moved, stored


def judged(*tensors: Tensor, files: int = 2) -> list[Finding]:
    return NonFiniteCheckpoint.criterion(evidence(*tensors, files=files))


@pytest.mark.parametrize("spoilt", [{"nan": 3}, {"infinite": 1}])
@pytest.mark.parametrize("kind", ["parameter", "state"])
def test_weights_and_state_that_are_not_finite_are_an_error(kind: str, spoilt: dict[str, int]) -> None:
    (finding,) = judged(moved(), moved("bad", kind=kind, second=stored(**spoilt)))
    assert finding.severity == "error"
    assert [s.name for s in finding.subjects] == ["bad"]
    assert "1 of them had only finite values" in finding.message


def test_one_file_alone() -> None:
    (finding,) = judged(alone(moved(first=stored(nan=1))), files=1)
    assert "1 NaN" in finding.message
    assert "first.pt" in finding.message


def test_what_is_finite_in_the_last_file_is_healthy() -> None:
    assert not judged(moved(first=stored(nan=1)))


def test_masks_may_be_infinite() -> None:
    mask = stored(infinite=100, is_mask=True, largest=0.0)
    assert not judged(moved("bias", second=mask))
    assert not judged(moved("mask", kind="buffer", second=mask))
    assert judged(moved("weight", second=mask, stepped=True))


def test_a_buffer_with_nan_is_a_warning() -> None:
    (finding,) = judged(moved("running_var", kind="buffer", second=stored(nan=2)))
    assert finding.severity == "warning"
