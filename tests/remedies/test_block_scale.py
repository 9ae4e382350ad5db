from __future__ import annotations

import pytest

from tests.remedies.quantized import CUT, STE, program
from tests.remedies.running import in_a_folder_of_its_own, losses_of, run

__all__ = ["in_a_folder_of_its_own"]

#: a scale that maps a tenth of the largest magnitude onto the last code
CLIPPED = (
    "scale = self.weight.detach().abs().amax() / {largest} / 10\n"
    "q = (self.weight.detach() / scale).round().clamp(-{largest}, {largest}) * scale\n"
    "return self.weight + (q - self.weight).detach()"
)
BY_HAND = """
    from precdoctor.formats import block_format
    from precdoctor.numerics import fake_quantize
    q = fake_quantize(self.weight.detach(), block_format({name!r}))
    return self.weight + (q - self.weight).detach()
"""


def by_hand(name: str) -> str:
    return program("\n".join(line[4:] for line in BY_HAND.format(name=name).strip("\n").splitlines()))


@pytest.mark.parametrize(("largest", "name"), [(7, "nvfp4"), (127, "int8:64")])
def test_takes_blocks_of_as_many_bits_as_the_program_has(largest: int, name: str) -> None:
    text = program(CLIPPED.format(largest=largest))
    assert run(text).ill("PD604") == {"inner.weight", "outer.weight"}
    treated = run(text, "block-scale")
    assert treated.intervention.acted
    assert treated.ill("PD604") == set()
    assert treated.losses == pytest.approx(losses_of(by_hand(name)), rel=1e-4)


def test_takes_the_format_that_it_is_told_and_passes_the_gradient_on() -> None:
    treated = run(program(CUT), "block-scale", format="mxfp8")
    assert treated.losses == pytest.approx(losses_of(by_hand("mxfp8")), rel=1e-4)


def test_treats_the_subjects_alone() -> None:
    some = run(program(CLIPPED.format(largest=7)), "block-scale", "outer.weight")
    assert some.ill("PD604") == {"inner.weight"}


def test_does_not_apply_where_nothing_is_rounded() -> None:
    treated = run(program("return self.weight"), "block-scale")
    assert treated.losses == run(program("return self.weight")).losses
    assert not treated.intervention.acted
    assert run(program(STE), "block-scale").intervention.acted
