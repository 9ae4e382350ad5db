from __future__ import annotations

import pytest

from tests.remedies.quantized import CUT, STE, program
from tests.remedies.running import in_a_folder_of_its_own, losses_of, run

__all__ = ["in_a_folder_of_its_own"]

PLAIN = "return self.weight"
HALF = "return quantize(self.weight.data) if self.weight.shape[0] == 4 else self.weight"


def test_products_get_the_weights_themselves() -> None:
    assert run(program(CUT), "keep-float32").losses == losses_of(program(PLAIN))
    assert run(program(STE, product="x @ self.used().T"), "keep-float32").losses == pytest.approx(
        losses_of(program(PLAIN)), rel=1e-6
    )


def test_keeps_the_layers_that_it_is_told() -> None:
    expected = run(program(HALF)).losses
    assert run(program(CUT), "keep-float32", layers="inner.weight").losses == expected
    assert run(program(CUT), "keep-float32", "inner.weight").losses == expected
    named = run(program(CUT), "keep-float32", "outer.weight", layers="inner.weight,outer.weight")
    assert named.losses == losses_of(program(PLAIN))


def test_does_not_apply_where_nothing_is_rounded() -> None:
    treated = run(program(PLAIN), "keep-float32")
    assert treated.losses == losses_of(program(PLAIN))
    assert not treated.intervention.acted


@pytest.mark.parametrize("used", [CUT, STE, "return quantize(self.weight)"])
def test_the_run_of_comparison_can_leave_all_quantizers_out(used: str) -> None:
    plain = losses_of(program(PLAIN))
    assert run(program(used), "float32", quantizers="bypassed").losses == pytest.approx(plain, rel=1e-6)
    assert run(program(used), "float32").losses == losses_of(program(used))


def test_the_run_of_comparison_leaves_out_the_rounding_of_data_and_of_the_weights_in_place() -> None:
    rounded = (
        program(PLAIN)
        .replace("torch.relu(", "torch.round(4 * torch.relu(")
        .replace("self.shift)))", "self.shift))) / 4)")
    )
    plain = rounded.replace("torch.round(", "(")
    bypassed = run(rounded, "float32", quantizers="bypassed")
    assert bypassed.losses == pytest.approx(run(plain).losses, rel=1e-6)
    store = "[p.data.copy_(quantize(p.data)) for p in model.parameters() if p.dim() > 1]"
    bypassed = run(program(PLAIN, after=store), "float32", quantizers="bypassed")
    assert bypassed.losses == losses_of(program(PLAIN))


def test_the_run_of_comparison_of_a_compiled_program_keeps_its_quantizers() -> None:
    text = program(CUT).replace(
        "model = Net()",
        "model = Net()\nimport warnings\nwarnings.simplefilter('ignore')\ntorch.compile(lambda x: x)",
    )
    assert run(text, "float32", quantizers="bypassed").losses == losses_of(program(CUT))
