from __future__ import annotations

import pytest

from tests.remedies.running import harms_no_healthy_one, in_a_folder_of_its_own, net, run

__all__ = ["in_a_folder_of_its_own"]

CURES = ("master-weights", "stochastic-rounding", "kahan")


@pytest.mark.parametrize("remedy", CURES)
def test_thaws_the_norm_and_leaves_the_model_in_its_format(remedy: str) -> None:
    text = net(steps=40)
    assert run(text).named("norm.weight").weight.moved_share == 0.0  # type: ignore[union-attr]
    treated = run(text, remedy)
    weight = treated.named("norm.weight").weight
    assert weight is not None
    assert weight.moved_share > 0.2
    assert treated.ill() == set()
    assert treated.formats == {"bfloat16"}


@pytest.mark.parametrize("remedy", [*CURES, "float32-state"])
def test_makes_the_state_float32(remedy: str) -> None:
    assert {s.format for s in run(net()).evidence.states} == {"bfloat16"}
    assert run(net(), remedy).evidence.states == ()


@pytest.mark.parametrize("remedy", [*CURES, "float32-state"])
def test_harms_no_float32_program(remedy: str) -> None:
    harms_no_healthy_one(remedy)


def test_float32_state_is_no_cure_for_frozen_weights() -> None:
    assert run(net(), "float32-state").ill() == run(net()).ill()


@pytest.mark.parametrize(
    ("remedy", "bytes_each"), [("master-weights", 4), ("kahan", 2), ("float32-state", 0)]
)
def test_tells_what_it_holds(remedy: str, bytes_each: int) -> None:
    treated = run(net(), remedy)
    numel = sum(p.numel for p in treated.evidence.parameters)
    assert treated.intervention.held_bytes() == bytes_each * numel
