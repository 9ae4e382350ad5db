from __future__ import annotations

import pytest

from tests.remedies.running import in_a_folder_of_its_own, net, run

__all__ = ["in_a_folder_of_its_own"]


def test_starts_the_subjects_smaller_and_nothing_else() -> None:
    untreated, treated = run(net(steps=5)), run(net(steps=5), "reinit", "norm.weight", factor=0.125)
    before, after = untreated.named("norm.weight").weight, treated.named("norm.weight").weight
    assert before is not None
    assert after is not None
    assert before.mean_first == 1.0
    assert after.mean_first == pytest.approx(0.125)
    other = untreated.named("inner.weight").weight, treated.named("inner.weight").weight
    assert other[0] is not None
    assert other[1] is not None
    assert other[0].mean_first == other[1].mean_first


def test_lets_more_updates_through() -> None:
    few, more = run(net()), run(net(), "reinit", "norm.weight", factor=1 / 64)
    lost = [r.named("norm.weight").updates.lost_share for r in (few, more)]  # type: ignore[union-attr]
    assert lost[0] == 1.0
    assert lost[1] < 0.2


def test_a_tied_weight_shrinks_once() -> None:
    two = "torch.optim.SGD([model.norm.weight], lr=0.0)\nother = torch.optim.SGD([model.norm.weight], lr=0.0)"
    text = net(optimizer=two, cast="").replace("    optimizer.step()", "    optimizer.step(); other.step()")
    run(text + "assert model.norm.weight.eq(0.5).all()\n", "reinit", "norm.weight", factor=0.5)
