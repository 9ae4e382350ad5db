"""Phases that are off, beside the integers of PD502."""

from __future__ import annotations

import pytest

from precdoctor.evidence import Phase
from precdoctor.rules.position_collision import PositionCollision
from tests.rules.exact import AT, SOURCE, run


@pytest.mark.parametrize(("share", "ill"), [(0.01, False), (0.03, True)])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_few_per_cent_of_the_phases_off_by_half_a_radian_are_ill(
    share: float, ill: bool, passes: int
) -> None:
    site = Phase(
        place=AT, cause=SOURCE, modules=("embed",), operation="sin", format="bfloat16", passes=passes,
        share=share, error_rad=2.2, largest=768.0,
    )  # fmt: skip
    found = PositionCollision.criterion(run(phases=(site,)))
    assert bool(found) == (ill and passes == 2)
    if found:
        assert found[0].severity == "warning"
        assert [x.place for x in found[0].locations] == [SOURCE, AT]
        assert [s.name for s in found[0].subjects] == ["embed"]
